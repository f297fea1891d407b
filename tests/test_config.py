"""A config is closed, light, and its errors say what to do."""

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import NO_PROBE, RETRY
from kd.config import Config, read_config, read_yaml, validate
from kd.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "prices.yaml"})
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def read(*arguments: str) -> Config:
    return read_config("python -m jobs.pipeline", "", [QUICKSTART, *arguments])


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_config_of_the_repository_is_valid_and_named_after_its_file(path: Path) -> None:
    assert read_config("x", "", [str(path)]).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_student_that_is_published_as_a_pickle_only_may_be_one(path: Path) -> None:
    student = read_config("x", "", [str(path)]).student
    assert student.allow_pickle == (student.name == "google/t5-v1_1-base")


@pytest.mark.parametrize("name", ["esnli", "anli", "svamp"])
def test_a_teacher_learns_the_format_where_the_input_says_nothing_of_the_task(name: str) -> None:
    config = read_config("x", "", [str(ROOT / "configs" / f"{name}.yaml")])
    assert config.teach is not None
    assert config.teach.warmup_steps < config.teach.eval_every_steps <= config.teach.steps


def test_the_command_line_wins_over_the_file() -> None:
    assert read("--attribution.method.norm=l2", "--training.steps=7", "--training.warmup_steps=1").attribution.method.norm == "l2"
    assert read("--training.steps=77").training.steps == 77


def test_a_mapping_is_merged_and_a_list_replaced() -> None:
    assert read("--attribution.splits.validation=5").attribution.splits == read().attribution.splits | {"validation": 5}
    assert read("--training.seeds=[3]").training.seeds == (3,)


@pytest.mark.parametrize(
    ("arguments", "section"),
    [
        (["--attribution.method.type=integrated_gradients"], {"type": "integrated_gradients", "n_steps": 50, "baseline": "pad"}),
        (["--attribution.method.type=saliency", "--attribution.method.norm=l2"], {"type": "saliency", "norm": "l2"}),
    ],
)
def test_another_type_starts_from_the_override_alone_and_the_same_type_is_merged(
    arguments: list[str], section: dict[str, object]
) -> None:
    assert read(*arguments).attribution.method.model_dump() == section


def test_every_tagged_part_of_a_config_can_be_changed_from_the_command_line() -> None:
    config = read(
        "--rationales.selection.type=threshold",
        "--rationales.selection.share=0.7",
        "--student.spec.type=warm_start",
        "--student.spec.encoder=minilm",
        "--task.type=svamp",
        "--task.path=elsewhere",
    )
    assert config.rationales.selection.model_dump() == {"type": "threshold", "share": 0.7}
    assert config.student.spec is not None
    assert config.student.spec.type == "warm_start"
    assert (config.task.type, config.task.path) == ("svamp", "elsewhere")


README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"^(?:ray job submit .*)?python -m (jobs\.\w+ .+)$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_the_readme_prints_is_accepted(command: str) -> None:
    job, config, *overrides = shlex.split(command)
    options = [NO_PROBE] if job == "jobs.plan" else [RETRY]
    assert read_config(job, "", [str(ROOT / config), *(given for given in overrides if given not in options)])


def test_the_environment_that_make_builds_is_activated_before_the_first_command() -> None:
    assert 0 < README.index("\nsource .venv/bin/activate\n") < README.index("\npython -m ")
    assert ".venv/bin/python" not in README, "one way to name it"


def test_the_readme_prints_commands() -> None:
    assert [command.split()[1] for command in COMMANDS] == [
        "configs/esnli.yaml",
        "configs/esnli.yaml",
        "configs/commonsense_qa.yaml",
    ]


def test_what_was_resolved_reads_back_as_the_same_config() -> None:
    config = read()
    assert validate(config.model_dump(mode="json"), "here") == config


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--atribution.splits=3",
            r"command line: atribution: unknown key; did you mean 'attribution'\? The keys here are about, attribution",
        ),
        ("--attribution.method.n_stepz=3", r"attribution\.method\.n_stepz: unknown key; did you mean 'n_steps'\?"),
        (
            "--attribution.method.type=salience",
            r"attribution\.method: .*'salience'.*'saliency', 'input_x_gradient', 'integrated_gradients'",
        ),
        ("-training.steps=5", r"command line: -training\.steps=5: expected --dotted\.path=value, with two dashes"),
        ("-", "with two dashes"),
        ("--training.steps=many", r"training\.steps: .*valid integer.*got 'many'"),
        ("--training.steps=0", r"training\.steps: .*greater than or equal to 1, got '0'"),
        ("--training.micro_batch_rows=8", r"training\.micro_batch_rows: unknown key; did you mean 'micro_batch_tokens'\?"),
        ("--cluster.max_actors=1", r"cluster: max_actors \(1\) is smaller than min_actors \(2\)"),
        ("--name=My Run", r"name: .*got 'My Run'"),
        ('--training.variants=[{"name":"x","source":"oracle"}]', r"'x' learns from source 'oracle'; rationales\.sources has"),
        ("--task.type=trivia", r"task: .*'trivia'.*'commonsense_qa'"),
        ("--teacher.name=google/flan-t5-xl", r"teacher: expected exactly one of name"),
    ],
)
def test_a_wrong_override_is_refused_with_its_path_and_what_is_valid(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(argument)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("task", {"path": "data/my.jsonl"}, r"evaluation\.split: test is no split of this corpus, which has train; name one of"),
        ("task", {"files": {"test": None}}, r"evaluation\.split: test is no split of this corpus, which has train, validation;"),
        (
            "attribution",
            {"splits": {"test": 5}},
            r"attribution\.splits: students learn from the attributed rows of train, got test",
        ),
        ("attribution", {"splits": {}}, r"attribution\.splits: students learn from the attributed rows of train, got none"),
    ],
)
def test_a_split_that_the_corpus_does_not_have_is_refused(section: str, values: dict[str, Any], message: str) -> None:
    data = read_yaml(QUICKSTART)
    data[section] = data[section] | values
    with pytest.raises(ConfigError, match=message):
        validate(data, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"rationales\.sources: attribution is made from the teacher's attributions, .* no `teacher`; .* llm, none"),
        ({"rationales": {"sources": [{"type": "random"}]}}, r"rationales\.sources: random is made from the teacher's"),
        ({"teach": {"steps": 5}}, r"teach: it fine-tunes the teacher, and the config has no `teacher`; .* leave teach out"),
        ({"attribution": {"explained": "predicted"}}, r"attribution: it explains the teacher, .* leave attribution out"),
        ({"training": {"answers": "teacher"}}, r"training\.answers: teacher is the teacher's answer, .* to gold or llm"),
    ],
)
def test_without_a_teacher_what_needs_one_is_refused(changes: dict[str, Any], message: str) -> None:
    data = read_yaml(QUICKSTART)
    plain = {key: data[key] for key in ("name", "task", "student")}
    variants = [{"name": "x", "source": "attribution" if not changes else "none", "objective": {"type": "label_only"}}]
    sections = {"rationales": {"sources": [{"type": "none"}]}} if changes else {}
    training = {"variants": variants} | changes.get("training", {})
    if "rationales" in changes:
        training["variants"] = [variants[0] | {"source": "random"}]
    with pytest.raises(ConfigError, match=message):
        validate(plain | sections | changes | {"training": training}, "here")


def test_a_split_that_is_held_out_of_train_is_one_of_the_corpus() -> None:
    data = read_yaml(QUICKSTART) | {"task": {"type": "commonsense_qa", "path": "data/my.jsonl", "holdout": {"fraction": 0.2}}}
    changes = {"attribution": {"splits": {"train": 5, "validation": 5}}, "evaluation": {"split": "validation"}}
    assert validate(data | changes, "here").task.splits == ["train", "validation"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("- a\n- b\n", "expected a mapping of keys at the top, got list"),
        ("name: x\ncolour: red\n", r"colour: unknown key"),
        ("name: x\n", r"task: Field required(?s:.*)student: Field required"),
        (
            "name: x\nrationales: {selection: {type: top_k, kk: 3}}\n",
            r"rationales\.selection\.kk: unknown key; did you mean 'k'\?",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_every_mistake_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config("x", "", [str(path)])


def test_a_missing_file_names_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*quickstrat\.yaml: No such file.*quickstart\.yaml"):
        read_config("x", "", [str(ROOT / "configs" / "quickstrat.yaml")])


@pytest.mark.parametrize("arguments", [[], ["a.yaml", "b.yaml"]])
def test_one_config_file_is_expected(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"expected one config file, got .*usage: python -m jobs\.x CONFIG"):
        read_config("python -m jobs.x", "", arguments)


@pytest.mark.parametrize(
    "job", ["prepare", "teach", "attribute", "rationalize", "audit", "train", "evaluate", "report", "pipeline", "plan"]
)
def test_help_says_what_the_options_mean(job: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"jobs.{job}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    option = "--no-probe" if job == "plan" else "--retry-errors"
    assert f"python -m jobs.{job} CONFIG [{option}] [--dotted.path=value ...]" in done.stdout
    assert "Rows of one update, over all workers" in " ".join(done.stdout.split())


def test_a_wrong_key_ends_a_job_in_two_seconds_before_anything_heavy_is_loaded() -> None:
    code = """
import sys
from runpy import run_module
sys.argv = ["attribute.py", "configs/quickstart.yaml", "--attribution.metod=saliency"]
try:
    run_module("jobs.attribute", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    print(ended.code, [name for name in ("torch", "ray", "transformers") if name in sys.modules])
"""
    before = cpu_s_of_children()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    taken_s = cpu_s_of_children() - before
    assert done.stdout.split() == ["2", "[]"], done.stdout + done.stderr
    assert "attribution.metod: unknown key; did you mean 'method'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert taken_s < 2


def cpu_s_of_children() -> float:
    """What the processes that have ended computed: unlike the time that passes, other work on the machine hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
