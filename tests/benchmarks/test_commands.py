from benchmarks.commands import ROOT, command


def test_paths_are_told_from_the_root():
    told = command("pfn curves", ["--data", str(ROOT.parent / "some data"), "--curves", "24"])
    assert told == "python -m benchmarks pfn curves --data '../some data' --curves 24"
    assert command("search", None) == "python -m benchmarks search"
