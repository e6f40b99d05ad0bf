"""The README.md of an export: where a model comes from, what it is worth and what it is not."""

from __future__ import annotations

from typing import Any

from tallrec.assets import ASSETS
from tallrec.evaluate.schema import COUNTING, MODEL, MetricResult, Result, SystemResult
from tallrec.llm.adapter import AdapterCard
from tallrec.prompts import get_template
from tallrec.prompts.in_context import question
from tallrec.run import RunDir
from tallrec.steps.evaluate import read_report
from tallrec.types import Item, Sample

_EXAMPLE = Sample(
    "someone", ((Item("1", "Title A"), True), (Item("2", "Title B"), False)), Item("3", "Title C")
)
_USES = {
    "merged": "A Hugging Face folder: the adapter is added to the weights. Any program that loads "
    "causal language models loads it (`AutoModelForCausalLM.from_pretrained`, `vllm serve`, or as "
    "`backbone.source` of a tallrec recipe).",
    "gguf": "One file for llama.cpp and whatever builds on it: `llama-server -m {gguf}`, or Ollama "
    "with a Modelfile of the lines `FROM ./{gguf}` and `TEMPLATE {{{{ .Prompt }}}}`.",
    "peft": "A LoRA adapter in PEFT's own format: `PeftModel.from_pretrained(base, FOLDER)`, or "
    "`vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`.",
}


def model_card(
    run: RunDir, card: AdapterCard, *, seed: int, to: str, dtype: str, files: list[str]
) -> str:
    """The text of a model card.

    Args:
        run: The run that the export comes from.
        card: What must be known to use its adapter.
        seed: The seed that was exported.
        to: The export's format.
        dtype: How its weights are kept.
        files: The names of its files.
    """
    gguf = next((name for name in files if name.endswith(".gguf")), "")
    sections = [
        _front_matter(to),
        f"# {run.path.name}\n\n{card.backbone} tuned with [TALLRec](https://doi.org/10.1145/"
        f"3604915.3608857) to say whether a user will like a {card.domain}. "
        + _USES[to].format(gguf=gguf),
        _asking(card),
        _origin(run, card, seed, dtype),
        _worth(run, seed),
        _limits(run, card),
        _licences(run),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(to: str) -> str:
    library = {"merged": "transformers", "gguf": "gguf", "peft": "peft"}[to]
    return f"---\nlibrary_name: {library}\ntags: [recommendation, tallrec, lora]\n---"


def _asking(card: AdapterCard) -> str:
    template = get_template(card.template)
    return (
        "## How to ask it\n\n"
        f"Complete this text (template `{card.template}`) by one token; the score is the "
        f"log-probability of `{card.yes}` (token {card.yes_id}) less that of `{card.no}` (token "
        f"{card.no_id}). No chat template, no system prompt.\n\n"
        f"```text\n{question(template, _EXAMPLE, card.domain)}\n```\n\n"
        "`tallrec in-context DATA --completions --shots 0 --template "
        f"{card.template} --base-url URL --model NAME --out FOLDER` asks so, of any server with "
        "OpenAI's completions."
    )


def _origin(run: RunDir, card: AdapterCard, seed: int, dtype: str) -> str:
    recipe, info = run.recipe, run.info
    facts = {
        "base model": f"{card.backbone}, weights {card.fingerprint}",
        "weights here": dtype,
        "data": f"{recipe.data.dataset}, split `{recipe.data.split}`; sha256 of its events "
        f"{info['data']['sha256']['events']}",
        "mixed with": ", ".join(recipe.data.mixed_with) or None,
        "instructions": ", ".join(stage.source for stage in recipe.instruction_stages) or None,
        "shots": recipe.shots.count if recipe.shots_stage is not None else 0,
        "seeds of the run": ", ".join(map(str, recipe.seeds)),
        "seed of this export": seed,
        "tallrec": f"{info['tallrec']}, commit {info['commit'] or 'unknown'}",
        "made again by": "`tallrec run recipe.toml --out RUN`, with `--data` where the recipe does "
        "not name the data",
    }
    lines = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return "\n".join(["## Where it comes from\n", "| | |", "|---|---|", *lines])


def _worth(run: RunDir, seed: int) -> str:
    title = "## What it is worth\n\n"
    if not run.evaluated:
        return title + "It was not measured: `tallrec evaluate` was not run before the export."
    report = read_report(run.path)
    data = report["data"]
    systems = [s for s in report["systems"] if s["kind"] in (MODEL, COUNTING)]
    index = run.recipe.seeds.index(seed)
    rows = "\n".join(_row(system, index) for system in systems)
    return (
        f"{title}{data['rows']:,} {report['metadata'].get('part', 'test')} samples of "
        f"{data['users']:,} users; means over the run's seeds with 95 % intervals over users. "
        f"Counting needs no model and stands beside it.\n\n"
        f"| system | AUC [95 %] | GAUC [95 %] | AUC, GAUC of this seed |\n|---|---|---|---|\n{rows}"
    )


def _row(system: SystemResult, index: int) -> str:
    metrics = [system["metrics"][name] for name in ("auc", "gauc")]
    own = ""
    if system["kind"] == MODEL:
        own = ", ".join(_number(metric["per_seed"][index]) for metric in metrics)
    return f"| {system['name']} | {' | '.join(map(_interval, metrics))} | {own} |"


def _interval(metric: MetricResult) -> str:
    low, high = _number(metric["low"]), _number(metric["high"])
    return f"{_number(metric['mean'])} [{low}, {high}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _limits(run: RunDir, card: AdapterCard) -> str:
    report: Result | dict[str, Any] = read_report(run.path) if run.evaluated else {}
    limits = [
        *report.get("warnings", []),
        f"It knows titles, not ids: a {card.domain} whose title says nothing to the base model is "
        "ranked by the user's general liking alone.",
        f"Prompts longer than {card.max_tokens} tokens were never seen in tuning.",
        "Probabilities are calibrated no better than the report says; compare scores, not "
        "probabilities, across users with care.",
        "It repeats what its data and its base model prefer: whoever is rare in them is served "
        "worse. Do not use it to decide about people.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _licences(run: RunDir) -> str:
    recipe = run.recipe
    lines = [
        f"- Base model, {recipe.backbone.source}: {_licence(recipe.backbone.source)}. What is "
        "derived from it stays under its terms.",
        f"- Data, {recipe.data.dataset}: {_licence(recipe.data.dataset)}.",
    ]
    lines += [
        f"- Instructions, {stage.source}: see where they come from."
        for stage in recipe.instruction_stages
    ]
    return "## Licences\n\n" + "\n".join(lines)


def _licence(source: str) -> str:
    return ASSETS[source].licence if source in ASSETS else "see where it comes from"
