"""Files from others that would run something: none of them does, and each is refused or read as plain data."""

import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_rl.actor import trust
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import REWARD
from megatron_rl.data.prompts import DataSettings, PromptSet
from megatron_rl.data.tiny_model import tiny_tokenizer
from megatron_rl.data.tokenizer import Template, load_tokenizer
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError
from tests.actor.test_pickled import Canary, saved
from tests.actor.test_trust import home, in_common, in_contents  # noqa: F401  # home is a fixture

CODE = "import os\nos.mkdir({path!r})\nclass Evil: ...\n"
TEMPLATES = (
    "{{{{ cycler.__init__.__globals__.os.mkdir({path!r}) }}}}",
    "{{{{ messages.__class__.__mro__[1].__subclasses__() }}}}",
    "{{{{ ''.__class__.__base__.__subclasses__() }}}}",
)


@pytest.fixture
def canary(tmp_path) -> Path:
    """A folder that comes to be when something malicious is run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the canary was called"


@pytest.mark.parametrize("place", [in_contents, in_common])
def test_a_checkpoint_that_would_call_something_is_refused_by_that_name(home, tmp_path, canary, place):  # noqa: F811
    folder = Path(shutil.copytree(home / "good", tmp_path / "bad"))
    place(folder, Canary(canary))
    with pytest.raises(SpecError, match="would call 'posix mkdir' when it is loaded"):
        trust.check(folder)


def test_a_tokenizer_that_brings_code_is_refused(tmp_path, canary):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(CODE.format(path=str(canary)))
    for name, told in (
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoTokenizer": "evil.Evil"}, "model_type": "evil"}),
    ):
        path = tmp_path / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, "tokenizer_class": "Evil", **told}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_reaches_nothing_but_its_messages(canary, template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template.format(path=str(canary))
    with pytest.raises(ValueError, match=r"cannot render the prompt.*(unsafe|undefined|not safe|access to attribute)"):
        Template(tokenizer=tokenizer, chat="always").texts(["a ?"])


def poisoned(table: pa.Table, canary: Path) -> pa.Table:
    """Its columns said to be of a type that Python would unpickle."""
    told = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    told[b"ARROW:extension:metadata"] = pickle.dumps(Canary(canary))
    return table.cast(pa.schema([field.with_metadata(told) for field in table.schema]))


def test_a_parquet_of_types_that_would_be_unpickled_is_plain_data(tmp_path, canary):
    prompts = pa.table({"prompt_id": ["a"], "prompt": ["1 + 1"], "source": ["x"], "answer": ["2"], "extra": ["{}"]})
    pq.write_table(poisoned(prompts, canary), tmp_path / "prompts.parquet")
    found = PromptSet.read([tmp_path / "prompts.parquet"], tiny_tokenizer(), DataSettings(train=()))
    assert len(found) == 1
    pq.write_table(poisoned(pa.table({"reward": [1.0]}), canary), tmp_path / "batch.parquet")
    assert Batch.read_parquet(tmp_path / "batch.parquet").numbers(REWARD).tolist() == [1.0]


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.mkdir ['{path}']",
        "!!python/object/new:os.mkdir {{args: ['{path}']}}",
        "!!python/name:os.mkdir",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{path}']",
        "!evil x",
    ],
)
def test_a_configuration_with_tags_is_refused_by_the_tag(tmp_path, canary, tagged):
    text = tagged.format(path=canary)
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {text}\n")
    with pytest.raises(SpecError, match=r"run\.yaml:1: the tag '.*' is not supported"):
        load(path)
    with pytest.raises(SpecError, match=r"the tag '.*' is not supported"):
        load(path, (f"run.name={text}",))


def test_a_file_of_pickles_is_no_parquet(tmp_path, canary):
    (tmp_path / "prompts.parquet").write_bytes(saved([Canary(canary)]))
    with pytest.raises((ValueError, SpecError, OSError)):
        PromptSet.read([tmp_path / "prompts.parquet"], tiny_tokenizer(), DataSettings(train=()))
