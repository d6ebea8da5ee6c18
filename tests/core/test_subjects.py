"""The data sets of evaluation: folders of subjects, and DreamBooth's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dreamcache.dreamcache_core.errors import DreamCacheError
from dreamcache.dreamcache_core.evaluation.subjects import load_masked_image, open_subjects
from support.subjects import write_subjects

DREAMBOOTH = """Classes

subject_name,class
bear_plushie,stuffed animal
dog2,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_subjects(tmp_path / "dataset")


def test_subjects_are_folders_of_pictures_with_prompts_and_a_class(dataset: Path) -> None:
    cup, dog = open_subjects(dataset)
    assert (cup.name, cup.class_name, cup.prompts) == (
        "coffee_cup",
        "coffee cup",
        ("a coffee cup in the jungle", "a red coffee cup"),
    )
    assert (dog.class_name, [path.name for path in dog.references]) == ("dog", ["00.jpg", "01.jpg"])
    first, second = map(load_masked_image, dog.references)
    assert first.mask is not None
    assert (first.mask.shape, first.mask.mean()) == ((200, 200), 0.25)
    assert second.mask is None

    (dataset / "coffee_cup" / "class.txt").write_text("mug\n")
    (dataset / "coffee_cup" / "prompts.txt").write_text("a {} on a {} rack")
    cup, dog = open_subjects(dataset)
    assert cup.prompts == ("a mug on a mug rack",)
    assert dog.prompts[0] == "a dog in the jungle"


def test_dreambooths_own_dataset_is_read(dataset: Path) -> None:
    (dataset / "prompts.txt").unlink()
    (dataset / "coffee_cup").rename(dataset / "bear_plushie")
    (dataset / "prompts_and_classes.txt").write_text(DREAMBOOTH)
    bear, dog = open_subjects(dataset)
    assert (bear.class_name, dog.class_name) == ("stuffed animal", "dog")
    assert bear.prompts == ("a stuffed animal in the snow", "a red stuffed animal")
    assert dog.prompts == ("a dog wearing a red hat",)


def test_datasets_that_are_none_are_refused_in_a_sentence(dataset: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(DreamCacheError) as raised:
            open_subjects(dataset)
        return str(raised.value).replace(str(tmp_path), "…")

    (dataset / "empty").mkdir()
    assert refusal() == (
        "…/dataset/empty contains no images: add some (.png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff or .avif), or "
        "remove the folder."
    )
    (dataset / "empty").rmdir()
    (dataset / "prompts.txt").write_text("a dog in the jungle")
    assert refusal() == (
        '…/dataset/prompts.txt has a prompt without {} in place of the subject: "a dog in the jungle".'
    )
    (dataset / "prompts.txt").unlink()
    assert refusal() == (
        "There are no prompts for coffee_cup: write some into …/dataset/prompts.txt, one per line, with {} in "
        "place of the subject."
    )
    shutil.rmtree(dataset / "coffee_cup")
    shutil.rmtree(dataset / "dog2")
    assert refusal() == "There are no subjects in …/dataset: add a folder of images for each subject."
