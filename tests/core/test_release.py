"""Publishing stops while something is missing that only the owner can fill in."""

from __future__ import annotations

from release.check_placeholders import unfilled


def test_every_placeholder_is_named_until_it_is_filled() -> None:
    empty = unfilled({"project": {}, "tool": {"comfy": {"PublisherId": ""}}})
    assert [problem.partition(":")[0] for problem in empty] == [
        "[project.urls] Repository",
        "[tool.comfy] PublisherId",
        "[tool.comfy] Icon",
        "[tool.comfy] Banner",
    ]
    address = "https://github.com/someone/comfyui-dreamcache"
    comfy = {"PublisherId": "someone", "Icon": f"{address}/icon.svg", "Banner": f"{address}/banner.svg"}
    assert unfilled({"project": {"urls": {"Repository": address}}, "tool": {"comfy": comfy}}) == []
