"""The rows that run.py left, joined, and what the page says of them: means, paired differences, verdicts."""
import json

from judge import bits_per_byte, paired, spread
from run import COSTLY, SWITCHES

CONTEXTS = ("512", "1024", "2048", "4096", "8192")
BUCKETS = ["8", "64", "128", "256", "512", "1024", "2048", "3072", "3600"]  # first distance of each
MISSING = "not run"


class Results:
    """Rows by (block, variant, level); units of text are matched to the teacher's, of which others may have judged every second one."""

    def __init__(self, found: dict, rows=None):
        self.rows, self.bytes = rows or newest(found), max((s["bytes"] for s in found["setups"]), key=lambda b: len(b["4096"]))
        self.start = {r["block"]: start_of(found, r) for r in self.rows if r["seed"] is not None}
        self.teacher = next(r for r in found["results"] if r["variant"] == "teacher")
        for setup in found["setups"]:  # fewer stretches are every second, fourth .. of the most
            assert all(every(self.bytes[c], len(sizes)) == sizes for c, sizes in setup["bytes"].items())

    def pick(self, block, variant, level=None, layers=None):
        return [r for r in self.rows if r["block"] == block and r["variant"] == variant and level in (None, r["level"])
                and (layers is None or sorted(r["layers"]) == sorted(layers))]

    def sizes(self, context, like):
        return every(self.bytes[context], len(like))

    def mean_bits(self, rows, context):
        """Bits a unit, mean over seeds"""
        return [sum(column) / len(rows) for column in zip(*(r["bits"][context] for r in rows))]

    def value(self, rows, context, like=None) -> str:
        """Bits per byte; on the stretches that `like` was judged on"""
        n = len((like or rows)[0]["bits"][context])
        mean, deviation = spread([bits_per_byte(every(r["bits"][context], n), every(self.bytes[context], n)) for r in rows])
        return f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")

    def against(self, rows, base, context):
        """Paired difference in bits per byte, over the seeds that both have (a base without a seed serves all), and half its interval"""
        seeds = {r["seed"] for r in rows} & {r["seed"] for r in base}
        if seeds and seeds != {None}:
            rows, base = ([r for r in x if r["seed"] in seeds] for x in (rows, base))
        a, b = self.mean_bits(rows, context), self.mean_bits(base, context)
        n = min(len(a), len(b))
        return paired(every(a, n), every(b, n), every(self.bytes[context], n))

    def noise(self, level, context) -> float:
        """Standard deviation of the default over seeds"""
        rows = self.pick("states", "2 states, window 64", level)
        return spread([bits_per_byte(x["bits"][context], self.sizes(context, x["bits"][context])) for x in rows])[1]

    def verdict(self, rows, base, level, context) -> str:
        difference, half = self.against(rows, base, context)
        if abs(difference) <= max(half, 2 * self.noise(level, context)):
            return "no difference"
        return "better" if difference < 0 else "worse"

    def percent(self, rows, base, context) -> str:
        """Paired change in percent of the base, with its 95 % interval"""
        if not rows or not base or context not in rows[0]["bits"] or context not in base[0]["bits"]:
            return MISSING
        difference, half = self.against(rows, base, context)
        n = min(len(rows[0]["bits"][context]), len(base[0]["bits"][context]))
        level = bits_per_byte(every(self.mean_bits(base, context), n), every(self.bytes[context], n))
        return f"{100 * difference / level:+.2f} ± {100 * half / level:.2f}"


def start_of(found: dict, r: dict):
    """First log weight of the states and the factor of its rate. The first runs did not write it down."""
    setup = found["setups"][r["setup"]]
    return setup.get("logWeight", -7.0), setup.get("far", 1.0)


def newest(found: dict):
    """Of every block the rows of the start that was used last, and of what was run twice the last; the others stay in the JSON."""
    last = {r["block"]: start_of(found, r) for r in found["results"] if r["seed"] is not None}
    rows = (r for r in found["results"] if r["seed"] is None or start_of(found, r) == last[r["block"]])
    return list({(r["block"], r["variant"], r["seed"], *sorted(r["layers"])): r for r in rows}.values())


def oldest(found: dict):
    """Rows of the first start, where a block was run again"""
    return [r for r in found["results"] if r["seed"] is None or start_of(found, r) == start_of(found, found["results"][0])]


def every(values, n: int):
    return values[:: len(values) // n]


def recall(rows) -> str:
    return f"{sum(b[0] for r in rows for b in r['recall']) / sum(b[1] for r in rows for b in r['recall']):.3f}" if rows else MISSING


def by_distance(rows):
    return [f"{sum(r['recall'][i][0] for r in rows) / sum(r['recall'][i][1] for r in rows):.2f}" for i in range(len(BUCKETS))]


def kl(rows) -> str:
    mean, deviation = spread([r["kl"] for r in rows]) if rows else (0, None)
    return MISSING if not rows else f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def millions(rows) -> str:
    return f"{rows[0]['tokens'] / 1e6:.1f} M" if rows and rows[0]["tokens"] else "0"


def table(head, rows) -> str:
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def seeds_of(rows):
    return "" if not rows or rows[0]["seed"] is None else len(rows)


def joined(runs) -> dict:
    records = []
    for setup, path in enumerate(runs):
        records += [json.loads(line) | {"setup": setup} for line in path.read_text().splitlines()]
    own = lambda kind: [{n: x for n, x in record.items() if n != "kind"} for record in records if record["kind"] == kind]
    return {"setups": own("setup"), "planned": [*SWITCHES, *COSTLY], "blocks": own("block"), "failures": own("failure"), "orders": own("orders"), "fits": own("match"), "results": own("result")}
