import json

import pytest

from tools import gpu_report

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_bf16" name="test_close" time="1.5">
  <properties><property name="mean" value="0.0123"/></properties></testcase>
<testcase classname="tests.gpu.test_fp8" name="test_there[a|b]" time="0.1">
  <skipped message="needs Transformer Engine"/></testcase>
<testcase classname="tests.gpu.test_fp8" name="test_wrong" time="0.2">
  <failure message="assert 1 == 2&#10;more"/></testcase>
</testsuite></testsuites>"""
BENCH = [
    {"what": "matrix product, bf16", "tflops": 788.123},
    {"what": "actor, fp8-mxfp8", "skipped": "cannot run here"},
]


def test_a_report_holds_versions_outcomes_reasons_and_numbers(tmp_path, capsys):
    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    out = tmp_path / "results"
    arguments = [str(out), "--tests", str(tmp_path / "tests.xml"), "--bench", str(tmp_path / "bench.json")]
    assert gpu_report.main(arguments) == 0
    (kept,) = out.glob("*.json")
    (shown,) = out.glob("*.md")
    assert kept.stem == shown.stem
    report, text = json.loads(kept.read_text()), shown.read_text()
    assert [test["outcome"] for test in report["tests"]] == ["passed", "skipped", "failed"]
    assert report["tests"][0]["numbers"] == {"mean": "0.0123"}
    assert report["versions"]["megatron-core"] == "0.16.1"
    for line in (
        "1 passed, 1 failed, 1 skipped.",
        "| test_bf16::test_close | passed | 1.5 | mean 0.0123 |",
        "| test_fp8::test_there[a\\|b] | skipped | 0.1 | needs Transformer Engine |",
        "| test_fp8::test_wrong | failed | 0.2 | assert 1 == 2 |",
        "| matrix product, bf16 | tflops 788.1 |",
        "| actor, fp8-mxfp8 | skipped cannot run here |",
    ):
        assert line in text


def test_a_folder_is_made_for_reports_but_none_above_it(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place, why in {"file": "/file is no folder", "no/such": "/no is no folder to make such in"}.items():
        with pytest.raises(SystemExit) as ended:
            gpu_report.main([str(tmp_path / place)])
        assert ended.value.code == 2
        assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_versions_alone_are_shown_without_a_folder(capsys):
    assert gpu_report.main([]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["megatron-core"] == "0.16.1"
    assert "torch" in shown
