"""The audit of a run in miniature: what it makes, when it makes it again, what the report says of it, and its gate."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs import audit, stages, train
from jobs.audit_findings import AuditFindings
from jobs.audit_wiring import AuditWiring
from jobs.cli import Session
from jobs.console import Console
from jobs.findings import Findings
from jobs.wiring import Wiring
from kd.audit_rows import Erasure, Measured
from kd.config import validate
from kd.errors import ConfigError, StageError
from kd.evaluation.gate import GAINS
from kd.evaluation.sums import Why
from kd.reporting.report import to_html, to_json, to_markdown
from kd.rows import MetricRow
from kd.shards import completed
from tests.mini import MINI, alone, audited, mini_config, prepared, taught, without_teacher, write_mini

ASKED: dict[str, Any] = MINI["audit"]["faithfulness"]
SOURCES = ("attribution", "random", "llm", "none")


def changed(wiring: Wiring, **sections: Mapping[str, Any]) -> Wiring:
    data = wiring.config.model_dump(mode="json")
    return Wiring(validate(data | {name: data[name] | dict(values) for name, values in sections.items()}, "test"), wiring.store)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Wiring:
    path = write_mini(tmp_path_factory.mktemp("mini"))
    return audited(taught(prepared(mini_config(path, training=alone()))))


GAIN, OVER_SHUFFLED = GAINS


def found(wiring: Wiring) -> dict[tuple[str, str], MetricRow]:
    return {(row.variant, row.metric): row for row in Findings(wiring).report().metrics if row.stage == "audit"}


def test_every_source_has_erasures_of_its_sample_and_findings_of_its_rows(done: Wiring) -> None:
    works = AuditWiring(done)
    for name in SOURCES:
        for work, row_type, rows in ((works.erasures(name), Erasure, 10), (works.measured(name), Measured, 30)):
            folder, manifest = completed(done.store, work)
            made = [row for shard in manifest.shards for row in done.store.read_rows(f"{folder}/{shard.file}", row_type)]
            assert (manifest.rows, len(made), manifest.errors) == (rows, rows, {})
    assert folder == "audit/words/none"
    # 20, 20 and 10 rows of train are attributed: some of each are measured.
    assert [shard.rows for shard in works.erasures("attribution").shards] == [3, 4, 3]
    assert [shard.rows for shard in works.measured("attribution").shards] == [10, 10, 10]


def test_each_number_of_the_audit_stands_beside_its_chance(done: Wiring) -> None:
    figures = found(done)
    for name in SOURCES:
        for metric in ("comprehensiveness:rationale", "comprehensiveness:rationale_random", GAIN):
            assert figures[name, metric].n == 10
        assert figures[name, "token_f1"].n == figures[name, "token_f1_chance"].n == 30
        assert figures[name, "overlap_any_chance:gold/gold/in/all"].n == 30
    assert figures["attribution", "auprc"].n == 30
    assert ("llm", "auprc") not in figures
    assert figures["attribution", "comprehensiveness:importance"].n == 10
    assert figures["llm", "comprehensiveness:importance"].value is None
    for metric in (OVER_SHUFFLED, "comprehensiveness_gain:shuffled"):
        assert (figures["attribution", metric].n, figures["random", metric].value) == (10, None)
    for metric in ("evidence_hit_shuffled", "token_f1_shuffled", "auprc_shuffled", "overlap_any_shuffled:gold/gold/in/all"):
        assert figures["attribution", metric].n == 30
    assert ("random", "token_f1_shuffled") not in figures
    # The LLM's words are the cue alone, which is all of the evidence; nothing is in no rationale's words.
    assert (figures["llm", "token_f1"].value, figures["none", "token_f1"].value) == (1, 0)
    assert figures["llm", "cot_whole:llm/gold/in/all"].value == 1
    assert figures["none", GAIN].value == 0
    assert figures["teacher", "accuracy:in_sample"].n == 30
    rates = [figures["teacher", name] for name in ("parse_rate", "truncation_rate")]
    assert [(row.value, row.n) for row in rates] == [(1, 30), (0, 30)], "what the teacher ranks first is an answer"
    share = f"{100 * (figures['teacher', 'accuracy:in_sample'].value or 0):.1f}% (100.0% parsed, 0.0% cut); chance is 25.0%"
    notes = Findings(done).report().tables[3].notes
    assert f"The teacher's own answers to the 30 measured rows with a label are right in {share}." in notes
    assert (figures["chance", "accuracy_chance"].value, figures["chance", "accuracy_chance"].n) == (0.25, 30)
    assert (figures["llm", "evidence_hit_rate"].value, figures["none", "evidence_hit_rate"].value) == (1, 0)
    assert figures["none", "rationale_words"].n == 30


def test_the_audit_depends_on_what_changes_its_rows_and_on_nothing_else(done: Wiring) -> None:
    def digests(wiring: Wiring) -> tuple[str, str]:
        works = AuditWiring(wiring)
        return works.erasures("attribution").digest, works.measured("attribution").digest

    asked, words = digests(done)
    same = {"min_faithfulness_gain": 0.5, "on_fail": "stop"}
    assert digests(changed(done, audit=same)) == (asked, words)
    for key, value in (("batch_tokens", 99), ("max_error_frac", 0.5)):
        assert digests(changed(done, audit={"faithfulness": ASKED | {key: value}})) == (asked, words)
    for key, value in (("rows", 11), ("seed", 1), ("fractions", [0.5])):
        changes = ASKED | {key: value}
        assert (digests(changed(done, audit={"faithfulness": changes}))[0] == asked) is False
        assert digests(changed(done, audit={"faithfulness": changes}))[1] == words
    for key, value in (("rows", 31), ("top_k", 3)):
        assert digests(changed(done, audit={key: value}))[0] == asked
        assert digests(changed(done, audit={key: value}))[1] != words


def test_the_report_has_the_audit_in_all_its_forms(done: Wiring) -> None:
    report = Findings(done).report()
    audit = next(table for table in report.tables if table.title == "Audit of the rationales")
    assert [line[0] for line in audit.rows] == ["attribution", "attribution, ranked", "random", "llm", "none"]
    assert audit.rows[3][4].startswith("100.0 / ")
    overlap = next(table for table in report.tables if table.title == "Label overlap")
    assert ("llm, text", "llm", "gold", "in", "all") in {tuple(line[:5]) for line in overlap.rows}
    assert {title for title in report.stages if title.startswith("audit")} == {
        *(f"audit {name}" for name in SOURCES),
        *(f"audit faithfulness {name}" for name in SOURCES),
    }
    assert all(report.stages[title] for title in report.stages if title.startswith("audit"))
    for text in (to_markdown(report), to_html(report)):
        assert "Audit of the rationales" in text
    assert to_json(report)["measures"]["token_f1"]["source"]


def test_a_run_that_was_not_audited_says_so(done: Wiring) -> None:
    other = changed(done, audit={"rows": 29, "faithfulness": None})
    report = Findings(other).report()
    assert not any(row.stage == "audit" for row in report.metrics)
    notes = [note for table in report.tables for note in table.notes]
    assert "The rationales have not been audited: run audit." in notes


def test_every_value_that_is_missing_has_its_reason_and_the_report_says_it_in_few_words(done: Wiring) -> None:
    figures, findings = found(done), AuditFindings(done)
    for name in SOURCES:
        missing = {metric for (variant, metric), row in figures.items() if variant == name and row.value is None}
        assert missing == findings._nulls(name).keys()
    reasons = findings.reasons()
    assert (
        "No comprehensiveness, comprehensiveness_gain, sufficiency, sufficiency_gain of lexical for attribution:"
        " 10 of 10 rows: the row has no word that stands in several of its texts."
    ) in reasons
    assert (
        "No comprehensiveness, sufficiency of importance, random, shuffled, lexical, rationale_shuffled; comprehensiveness_gain,"
        " sufficiency_gain of random, shuffled, lexical, rationale_shuffled for random, llm, none: 10 of 10 rows: the row has a"
        " rationale whose words are not ranked."
    ) in reasons
    assert len(reasons) < 10
    report = to_json(Findings(done).report())
    assert report["left_out"]["llm"]["comprehensiveness:importance"] == {Why.UNRANKED: 10}
    assert set(report["left_out"]) == set(SOURCES)
    assert report["table_notes"]["Audit of the rationales"][-len(reasons) :] == reasons


def test_without_the_teacher_s_answers_what_follows_from_them_is_null_with_the_reason(tmp_path: Path) -> None:
    attribution = MINI["attribution"] | {"answers": False}
    wiring = audited(taught(prepared(mini_config(write_mini(tmp_path), training=alone(), attribution=attribution))))
    figures, reasons = found(wiring), Findings(wiring).report().audit
    assert ("teacher", "accuracy:in_sample") not in figures
    assert "No accuracy for teacher: no measured row has both a label and an answer of the teacher's own." in reasons
    assert (figures["attribution", "overlap_any:gold/predicted/in/all"].value, figures["attribution", "token_f1"].n) == (None, 30)
    (said,) = [reason for reason in reasons if "for attribution, random, llm, none" in reason and "no answer" in reason]
    assert said.startswith("No overlap_any, overlap_any_chance, overlap_any_option_chance, overlap_any_shuffled, overlap_top1,")
    parts = "gold/predicted/in/all, gold/predicted/out/all"
    assert said.endswith(f" of {parts} for attribution, random, llm, none: 30 of 30 rows: the row has no answer of the model.")


def test_without_a_teacher_faithfulness_is_null_with_the_reason_and_the_rest_comes_out(tmp_path: Path) -> None:
    wiring = audited(taught(prepared(without_teacher(write_mini(tmp_path), audit={"rows": 20}))))
    figures = found(wiring)
    assert figures["llm", "token_f1"].value == 1
    assert figures["llm", "cot_any:llm/gold/in/all"].n == 20
    assert ("teacher", "accuracy") not in figures
    reasons = Findings(wiring).report().audit
    assert "No faithfulness for llm, none: the config has no teacher to ask again." in reasons
    with pytest.raises(ConfigError, match="audit.min_faithfulness_gain: a teacher is asked for it, and the config has none"):
        changed(wiring, audit={"min_faithfulness_gain": 0.1})


@pytest.mark.parametrize("on_fail", ["warn", "stop"])
def test_a_source_that_does_not_pass_is_warned_of_or_ends_the_run_before_training(
    done: Wiring, monkeypatch: pytest.MonkeyPatch, on_fail: str
) -> None:
    monkeypatch.setattr(stages, "run_works", lambda session, title, works, pool: None)
    gated = changed(done, audit={"min_faithfulness_gain": 2, "on_fail": on_fail})
    ready = Session(gated.config, gated.store, Console(io.StringIO()))
    if on_fail == "stop":
        with pytest.raises(StageError, match=r"the audit's gate: attribution.*No student was trained"):
            audit.run(ready)
    else:
        audit.run(ready)
    assert isinstance(ready.console.stream, io.StringIO)
    assert "WARNING: attribution" in ready.console.stream.getvalue()
    assert any(note.startswith("Gate: attribution") for note in Findings(gated).report().audit)


def test_no_student_is_trained_behind_a_closed_gate(done: Wiring) -> None:
    """By `jobs.train` alone either."""
    for least, method, reason in (
        (2, "saliency", "the audit's gate: attribution.*No student was trained"),
        (-2, "input_x_gradient", "the audit is not complete for this config; run the stage 'audit' first"),
    ):
        gated = changed(done, audit={"min_faithfulness_gain": least, "on_fail": "stop"}, attribution={"method": {"type": method}})
        with pytest.raises(StageError, match=reason):
            train.run(Session(gated.config, gated.store, Console(io.StringIO())))


def test_an_audit_of_what_is_not_there_is_refused(done: Wiring) -> None:
    with pytest.raises(ConfigError, match="audit.split: validation has no rationales; it is one of test, train"):
        changed(done, audit={"split": "validation"})
    with pytest.raises(ConfigError, match="a gate must know whether the teacher is near chance, and attribution.answers = false"):
        changed(done, audit={"min_faithfulness_gain": 0.1}, attribution={"answers": False})
    with pytest.raises(ConfigError, match=r"audit.gated: expected names of rationales.sources, .*, got \['tf-idf'\]"):
        changed(done, audit={"min_faithfulness_gain": 0.1, "gated": ["tf-idf"]})
