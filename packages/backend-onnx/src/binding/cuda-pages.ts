import type { Pages } from './space.js';

/** Device memory in pages of CUDA's virtual memory management. */
export interface CudaPages extends Pages {
  /** Addresses for so many bytes; undefined where there are none. */
  reserve(bytes: number): { readonly address: bigint; free(): void } | undefined;
}

const P = 'void *';
const Z = 'size_t';
const U = 'uint64_t';
const [pinned, ofDevice, readWrite] = [1, 1, 3]; // CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE

let opened: Promise<CudaPages | undefined> | undefined;

/** Undefined where the driver or the device cannot. The device's context must be current. One a process. */
export function openCudaPages(): Promise<CudaPages | undefined> {
  opened ??= open();
  return opened;
}

async function open(): Promise<CudaPages | undefined> {
  const { default: koffi } = await import('koffi');
  const driver = koffi.load('libcuda.so.1');
  const granularityOf = driver.func('cuMemGetAllocationGranularity', 'int', [P, P, 'int']);
  const reserve = driver.func('cuMemAddressReserve', 'int', [P, Z, Z, U, U]);
  const free = driver.func('cuMemAddressFree', 'int', [U, Z]);
  const create = driver.func('cuMemCreate', 'int', [P, Z, P, U]);
  const map = driver.func('cuMemMap', 'int', [U, Z, Z, U, U]);
  const setAccess = driver.func('cuMemSetAccess', 'int', [U, Z, P, Z]);
  const unmap = driver.func('cuMemUnmap', 'int', [U, Z]);
  const release = driver.func('cuMemRelease', 'int', [U]);

  const properties = new Int32Array(8); // CUmemAllocationProp: type, handle types, location (type, device), 16 bytes of nothing
  properties.set([pinned, 0, ofDevice, 0]);
  const access = Int32Array.of(ofDevice, 0, readWrite); // CUmemAccessDesc: location (type, device), flags
  const granularity = new BigUint64Array(1);
  if (granularityOf(granularity, properties, 0) !== 0 || granularity[0] === 0n) return undefined;
  const size = Number(granularity[0]);
  const pages: CudaPages = {
    size,
    map(address, bytes) {
      const handle = new BigUint64Array(1);
      if (create(handle, bytes, properties, 0) !== 0) return false;
      const mapped = map(address, bytes, 0, handle[0], 0) === 0;
      release(handle[0]); // it stays as long as it is mapped
      if (mapped && setAccess(address, bytes, access, 1) === 0) return true;
      if (mapped) unmap(address, bytes);
      return false;
    },
    unmap: (address, bytes) => unmap(address, bytes),
    reserve(bytes) {
      const length = Math.ceil(bytes / size) * size;
      const address = new BigUint64Array(1);
      if (reserve(address, length, 0, 0, 0) !== 0) return undefined;
      return { address: address[0]!, free: () => free(address[0], length) };
    },
  };
  return works(pages) ? pages : undefined;
}

/** Not every virtual device can. */
function works({ size, map, unmap, reserve }: CudaPages): boolean {
  const room = reserve(size);
  const mapped = room !== undefined && map(room.address, size);
  if (mapped) unmap(room.address, size);
  room?.free();
  return mapped;
}
