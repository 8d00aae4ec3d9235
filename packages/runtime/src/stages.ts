import type { ModelDescription, Plan, Segment } from '@dsla/models';
import { type Capabilities, joinGraphs, type LayerGraph } from '@dsla/spec';

/** What one compile call per version gets: a segment, or several joined. */
export interface StageGraphs {
  /** Convertible layer, where the versions differ by mixer. */
  readonly layer?: number;
  readonly versions: ReadonlyMap<string, LayerGraph>;
}

/**
 * The body of a model in stages. A fixed plan needs one version of every segment; without one all are kept. A device that
 * likes runs gets consecutive segments of one version as one tape, so a fixed plan is one program.
 */
export function stagesOf(
  { segments, head }: Pick<ModelDescription, 'segments' | 'head'>,
  grain: Capabilities['grain'],
  plan?: Plan,
): StageGraphs[] {
  const stages = segments.map((segment) => versionsInUse(segment, plan));
  if (grain === 'segment') return stages;
  const groups: StageGraphs[][] = [];
  for (const stage of stages) {
    const group = groups.at(-1);
    if (group && isSingle(group[0]!) && isSingle(stage)) group.push(stage);
    else groups.push([stage]);
  }
  return groups.map((group, index) => {
    if (group.length === 1) return group[0]!;
    const later = [
      ...groups
        .slice(index + 1)
        .flat()
        .flatMap(graphsOf),
      head,
    ];
    return { versions: new Map([['default', joinGraphs(group.flatMap(graphsOf), new Set(later.flatMap(inputsOf)))]]) };
  });
}

function versionsInUse(segment: Segment, plan: Plan | undefined): StageGraphs {
  const { layer, versions } = segment;
  const mixer = layer === undefined ? 'default' : plan?.[layer];
  if (mixer !== undefined) return { versions: new Map([['default', versions[mixer] ?? versions.default]]) };
  const all = new Map(Object.entries(versions));
  return layer === undefined || all.size === 1 ? { versions: all } : { layer, versions: all };
}

const isSingle = ({ versions }: StageGraphs): boolean => versions.size === 1;
const graphsOf = ({ versions }: StageGraphs): LayerGraph[] => [...versions.values()];
const inputsOf = ({ nodes }: LayerGraph): string[] => nodes.flatMap((node) => (node.op === 'input' ? [node.name] : []));
