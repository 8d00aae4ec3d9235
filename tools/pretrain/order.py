"""Order of conversion from the measured damage of windowing one layer: layers that carry recall last, the rest by perplexity.

    python order.py --results ../../docs/results/checkpoints.json --out ../../apps/harness/checkpoints/llama-4m/order.json
"""

import argparse
import json

# A layer carries recall when windowing it alone loses more than this share of all answers: far above the noise of some
# 500 questions (standard error 0.005 at 0.99), far below the loss that such layers show.
CARRIES = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True)
    parser.add_argument("--model", default="llama-4m")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    with open(args.results, encoding="utf8") as file:
        models = {model["model"]: model["evaluation"] for model in json.load(file)["models"]}
    windowed = models[args.model]["windowed"]
    layers = [
        {
            "layer": entry["layer"],
            "perplexityChange": entry["perplexity"] / windowed["full"]["perplexity"] - 1,
            "recall": sum(bucket["right"] for bucket in entry["buckets"]) / sum(bucket["asked"] for bucket in entry["buckets"]),
        }
        for entry in windowed["layers"]
    ]
    carries = lambda entry: 1 - entry["recall"] > CARRIES  # noqa: E731
    layers.sort(key=lambda entry: (carries(entry), entry["perplexityChange"]))
    order = {
        "order": [entry["layer"] for entry in layers],
        "keep": sum(map(carries, layers)),
        "origin": f"one layer at a time as a window of {windowed['window']} + {windowed['sinks']} sinks, untrained, context "
        f"{windowed['full']['context']}: layers that lose recall last, the others by perplexity",
        "evidence": layers,
    }
    with open(args.out, "w", encoding="utf8") as file:
        json.dump(order, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
