"""Write what the run showed: report.json, report.md, report.html. It may be made at any time; what is missing says why.

The rest of the run directory is looked at and left as it is.
"""

from jobs.cli import Session, main


def run(session: Session) -> None:
    """The stage. What is heavy is imported here, after the config was read."""
    from jobs.findings import Findings
    from jobs.wiring import Wiring
    from kd.reporting.report import to_html, to_json, to_markdown
    from kd.reporting.tables import as_text, terminal_table

    line = session.console.stage("report")
    report = Findings(session.works or Wiring(session.config, session.store), session.audit).report()
    session.store.publish_json("report.json", to_json(report))
    session.store.publish("report.md", to_markdown(report).encode())
    session.store.publish("report.html", to_html(report).encode())
    line.close("report.json, report.md, report.html")
    tables = f"{terminal_table(report.all_metrics)}\n\n{as_text(report.rationales)}"
    session.console.say(f"\n{tables}\n\n{session.store.path('report.html')}")


if __name__ == "__main__":
    main(run, __doc__)
