import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sparsebench.audit import audit, text, to_json
from sparsebench.audit.checkpoint import StoredTensor
from sparsebench.audit.patterns import count
from sparsebench.audit.report import pattern_name
from sparsebench.errors import InputError, IntegrityError


def weight(rows: int = 64, inputs: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) + 3.0


def two_of_four(dense: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Two zeros at random places of each four inputs."""
    scores = torch.rand(dense.shape, generator=torch.Generator().manual_seed(seed)).view(-1, 4)
    return dense.masked_fill(
        torch.zeros_like(scores).scatter_(1, scores.topk(2).indices, 1).bool().view(dense.shape), 0.0
    )


def saved(folder: Path, config: dict | None = None, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name.replace("__", "."): t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def kernel(found, name: str):
    return next(k for k in found.kernels if k.name.startswith(name))


def test_zeros_are_counted_over_linear_layers_and_over_all(tmp_path: Path) -> None:
    sparse = two_of_four(weight())
    norm, embedding = torch.zeros(128), weight(32)
    place = saved(
        tmp_path / "m", layers__0__up__weight=sparse, norm__weight=norm, model__embed_tokens__weight=embedding
    )
    found = audit(str(place))
    ((tensor, patterns),) = found.linear
    assert tensor.name == "layers.0.up.weight" and patterns.zeros == 64 * 64
    assert found.parameters == 64 * 128 + 128 + 32 * 128 and found.zeros == 64 * 64 + 128


def test_decay_rates_are_no_linear_layer_and_long_names_say_that_they_are_cut(tmp_path: Path) -> None:
    long = "backbone__" + "deep__" * 10 + "mixer__in_proj__weight"
    place = saved(tmp_path / "m", **{long: weight(), "backbone__layers__0__mixer__A_log": weight(64, 16)})
    found = audit(str(place))
    assert [tensor.name.rpartition(".")[2] for tensor, _ in found.linear] == ["weight"]
    (line,) = (line for line in text(found).splitlines() if "in_proj" in line)
    assert line.strip().startswith("…") and len(line.split()[0]) == 43


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_pattern_is_found_in_every_dtype_and_used_where_it_fits(tmp_path: Path, dtype: torch.dtype) -> None:
    found = audit(str(saved(tmp_path / "m", a__weight=two_of_four(weight()).to(dtype))))
    ((_, patterns),) = found.linear
    assert pattern_name(patterns) == "2:4" and patterns.share_of_groups(2, 4) == 1
    assert kernel(found, "2:4").usable == ("no" if dtype == torch.float32 else "yes")


def test_one_group_without_zeros_is_no_pattern(tmp_path: Path) -> None:
    sparse = two_of_four(weight())
    sparse[-1, -4:] = 1.0
    found = audit(str(saved(tmp_path / "m", a__weight=sparse.bfloat16())))
    assert found.linear[0][1].fewest_zeros(4) == 0 and kernel(found, "2:4").usable == "no"
    assert "all would need to" in kernel(found, "2:4").why


def test_a_pattern_in_a_shape_that_no_kernel_takes(tmp_path: Path) -> None:
    found = audit(str(saved(tmp_path / "m", a__weight=two_of_four(weight(24, 36)).bfloat16())))
    assert "shapes or dtype" in kernel(found, "2:4").why


def test_blocks_rows_and_columns(tmp_path: Path) -> None:
    blocks = weight(128, 128)
    blocks[:64, :64] = 0
    removed = weight(128, 128)
    removed[5:21], removed[:, 7] = 0, 0
    found = audit(str(saved(tmp_path / "m", a__weight=blocks, b__weight=removed)))
    a, b = (patterns for _, patterns in found.linear)
    assert a.zero_blocks(64) == 0.25 and a.zero_blocks(128) == 0
    assert (b.zero_rows, b.zero_columns) == (16, 1)
    assert kernel(found, "block").usable == "yes" and kernel(found, "smaller").usable == "in part"


def test_values_of_few_bits_in_wide_storage(tmp_path: Path) -> None:
    codes = torch.randint(0, 16, (64, 4, 32), generator=torch.Generator().manual_seed(0))
    scales = 1 + torch.rand(64, 4, 1, generator=torch.Generator().manual_seed(1))
    found = audit(str(saved(tmp_path / "m", a__weight=((codes - 7.5) * scales).reshape(64, 128), b__weight=weight())))
    a, b = (patterns for _, patterns in found.linear)
    assert a.value_bits == (4, 32) and b.value_bits is None
    assert "values of 4 bits" in kernel(found, "low-bit").why


def test_codes_of_packed_formats_have_no_zeros(tmp_path: Path) -> None:
    packed = torch.zeros(64, 16, dtype=torch.int32)
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    found = audit(str(saved(tmp_path / "m", config, a__qweight=packed, b__weight=weight())))
    assert found.zeros == 0 and found.parameters == 64 * 128
    assert kernel(found, "low-bit").usable == "yes" and "gptq" in kernel(found, "low-bit").why
    assert "codes of a packed format" in text(found)


def test_int8_with_a_zero_point_holds_codes(tmp_path: Path) -> None:
    codes = torch.zeros(64, 128, dtype=torch.int8)
    shifted = {"a__weight": codes, "a__weight_zero_point": torch.ones(64, 1), "b__weight": codes.clone()}
    found = audit(str(saved(tmp_path / "m", **shifted)))
    assert [t.name for t, _ in found.linear] == ["b.weight"] and found.linear[0][1].sparsity == 1


def test_bitmasks_are_read(tmp_path: Path) -> None:
    dense = two_of_four(weight())
    mask = np.packbits((dense != 0).numpy(), axis=-1, bitorder="little")
    place = saved(
        tmp_path / "m",
        a__weight__bitmask=torch.from_numpy(mask),
        a__weight__compressed=dense[dense != 0].bfloat16(),
        a__weight__shape=torch.tensor([64, 128]),
        a__weight__row_offsets=torch.arange(64),
    )
    ((tensor, patterns),) = audit(str(place)).linear
    assert tensor.name == "a.weight" and patterns.zeros == 64 * 64 and pattern_name(patterns) == "2:4"
    assert tensor.bits == pytest.approx(9.0)


def test_transposed_layers_are_grouped_along_their_inputs(tmp_path: Path) -> None:
    place = saved(tmp_path / "m", {"model_type": "gpt2"}, h__0__c_fc__weight=two_of_four(weight()).T)
    ((tensor, patterns),) = audit(str(place)).linear
    assert tensor.shape == (64, 128) and pattern_name(patterns) == "2:4"


def test_experts_are_rows(tmp_path: Path) -> None:
    experts = torch.stack([two_of_four(weight(48, 64, k), k) for k in range(3)])
    ((tensor, patterns),) = audit(str(saved(tmp_path / "m", experts__weight=experts))).linear
    assert (tensor.rows, patterns.rows, patterns.entries) == (144, 144, 144 * 64) and pattern_name(patterns) == "2:4"


def test_damaged_values_are_said(tmp_path: Path) -> None:
    bad = weight()
    bad[0, 0], bad[1, 1] = float("nan"), float("inf")
    found = audit(str(saved(tmp_path / "m", a__weight=bad)))
    assert "2 values are not finite" in text(found)


class Trap:
    def __reduce__(self):
        return (Path("/nonexistent").touch, ())


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="may be pickles"):
        audit(str(tmp_path))
    saved(tmp_path, a__weight=weight())
    found = audit(str(tmp_path))
    assert found.pickles == ("pytorch_model.bin",) and "not opened" in text(found)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights"):
        audit(str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match="no checkpoint"):
        audit(str(tmp_path / "a.txt"))
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        audit(str(tmp_path))
    with pytest.raises(InputError):
        audit("no/where@@")


def test_gguf_is_read_in_pieces(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    dense = two_of_four(weight()).numpy()
    file = tmp_path / "m.gguf"
    writer = GGUFWriter(str(file), "llama")
    writer.add_tensor("blk.0.ffn_up.weight", dense.astype(np.float16))
    coded = quants.quantize(dense.astype(np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_down.weight", coded, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = audit(str(file))
    by_name = {t.name: (t, p) for t, p in found.linear}
    for name, bits in (("blk.0.ffn_up.weight", 16.0), ("blk.0.ffn_down.weight", 8.5)):
        tensor, patterns = by_name[name]
        assert tensor.shape == (64, 128) and tensor.bits == bits and pattern_name(patterns) == "2:4"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.sampled_from([16, 48, 64]), st.integers(0, 2**31), st.integers(1, 3))
def test_counting_in_pieces_is_counting_at_once(rows: int, inputs: int, seed: int, pieces: int) -> None:
    values = torch.randint(0, 3, (rows, inputs), generator=torch.Generator().manual_seed(seed)).float()
    whole = count([values], inputs)
    parts = count(values.split(128 * pieces), inputs)
    assert (whole.zeros, whole.groups, whole.blocks, whole.zero_rows) == (parts.zeros, parts.groups, parts.blocks, parts.zero_rows)  # fmt: skip
    assert whole.zeros == int((values == 0).sum()) and whole.zero_columns == int((values == 0).all(0).sum())


def test_rows_are_read_a_slab_at_a_time() -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return torch.ones(stop - start, 1 << 16)

    tensor = StoredTensor("a.weight", (300, 1 << 16), "F32", 32.0, False, read)
    assert sum(len(slab) for slab in tensor.slabs()) == 300 and asked == [(0, 128), (128, 256), (256, 300)]


def test_json_holds_everything(tmp_path: Path) -> None:
    data = json.loads(json.dumps(to_json(audit(str(saved(tmp_path / "m", a__weight=two_of_four(weight())))))))
    assert data["tensors"][0]["pattern"] == "2:4" and {k["usable"] for k in data["kernels"]} <= {"yes", "no", "in part"}
