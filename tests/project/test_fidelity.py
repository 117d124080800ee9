"""The page on blur: results of several calls side by side."""

import pytest

from benchmarks import fidelity
from benchmarks.shared import results
from benchmarks.shared.places import DOCS, IMAGES, RESULTS


def test_methods_that_are_not_named_stay_with_their_pictures():
    before = {"runs": {"nft": ["old"], "default": ["old"]}, "shown": [["default", "nft"]]}
    assert fidelity.merged(before, {"nft": ["new"]}) == {
        "runs": {"default": ["old"], "nft": ["new"]},
        "shown": [["default", "nft"], ["nft"]],
    }
    assert fidelity.merged(before, {"nft": ["new"], "default": ["new"]})["shown"] == [["nft", "default"]]
    assert fidelity.merged({}, {"awm": ["new"]}) == {"runs": {"awm": ["new"]}, "shown": [["awm"]]}


@pytest.mark.parametrize("other", [["--minutes", "2"], ["--seeds", "7"]])
def test_what_cannot_stand_beside_the_others_is_refused_before_it_is_trained(monkeypatch, tmp_path, other):
    monkeypatch.setattr(fidelity, "train", None)
    with pytest.raises(SystemExit, match="other methods with 4 minutes and the seeds"):
        fidelity.main(["--methods", "awm", "--keep", str(tmp_path), *other])


def test_the_page_is_made_of_the_results_and_its_pictures_are_there():
    found = results.read(RESULTS / "fidelity.json")
    page = fidelity.page(found)
    assert (DOCS / "fidelity.md").read_text() == page
    shown = [name for name in page.split("images/") if name.startswith("fidelity-pictures")]
    assert len(shown) == len(found["shown"])
    assert all((IMAGES / name.partition(")")[0]).is_file() for name in shown)
