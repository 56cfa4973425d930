"""Converter configurations: golden files, and every rule once broken and once kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiced.engine.backends.mindspore_lite.gear_text import parse_gears
from voiced.engine.build.mindspore.ascend_config import (
    MAX_DIMENSIONS,
    RULES,
    VARIANTS,
    Aoe,
    AscendGraph,
    AscendOptions,
    AttentionAttributes,
    Chip,
    ConversionRefused,
    Dynamic,
    FusedOp,
    Layout,
    PrecisionMode,
    Provider,
    Tuning,
    conversions,
    dynamic_dims,
    problems,
    variant_options,
)

GOLDEN = Path(__file__).parent / "golden"

ENCODER = AscendGraph(
    "prefill",
    inputs=("feats", "mask4", "pos"),
    gears=(
        ((1, 106, 80), (1, 25), (1, 49, 512)),
        ((1, 206, 80), (1, 50), (1, 99, 512)),
        ((8, 106, 80), (8, 25), (1, 49, 512)),
    ),
    relative_bias=True,
)
STEP = AscendGraph(
    "step",
    inputs=("tokens", "scores", "self_kv", "cross_kv", "cache_mask"),
    gears=tuple(
        ((n, 5), (n, 5), (2, n * 6, 8, 64, cells * 5), (2, n * 6, 8, 64, s), (n, 5, cells, 5))
        for n, cells, s in ((1, 64, 475), (1, 64, 600), (4, 64, 475))
    ),
)
BATCH = AscendGraph("prefill", ("x", "m"), gears=tuple(((n, 64, 80), (n, 64)) for n in (1, 2, 4)))
STATIC = AscendGraph("step", ("tokens", "slot"), gears=(((1, 5), (64,)),))

P310, B910 = Chip.ASCEND_310P, Chip.ASCEND_910B

CASES = {
    "310p-encoder-nd": (ENCODER, AscendOptions(P310, soc_version="Ascend310P3")),
    "910b-encoder-nd": (ENCODER, AscendOptions(B910, fused=(FusedOp.LAYER_NORM_V3,))),
    "310p-step-flash": (
        STEP,
        AscendOptions(
            P310,
            fused=(FusedOp.FLASH_ATTENTION, FusedOp.LAYER_NORM_V3),
            attention=AttentionAttributes(Layout.BNSD, seq_threshold=64, inner_precise=1),
        ),
    ),
    "910b-step-all": (
        STEP,
        AscendOptions(B910, fused=(FusedOp.ALL,), cache_dir="/var/cache/voiced/kernels"),
    ),
    "310p-dynamic-batch": (BATCH, AscendOptions(P310, dynamic=Dynamic.BATCH)),
    "910b-static": (STATIC, AscendOptions(B910)),
    "310p-aoe-tool": (ENCODER, AscendOptions(P310, aoe=Aoe.TOOL)),
    "910b-aoe-api": (STEP, AscendOptions(B910, provider=Provider.GE, aoe=Aoe.API)),
    "910b-ge-external": (
        replace(STEP, weight_bytes=3 * 2**30),
        AscendOptions(B910, provider=Provider.GE, external_weights=True, variable_weights=True),
    ),
    "310p-acl-external": (
        replace(ENCODER, weight_bytes=3 * 2**30),
        AscendOptions(P310, external_weights=True, aoe=Aoe.TOOL, tuning=(Tuning.OPERATOR,)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_configuration_and_command_are_as_on_file(name: str) -> None:
    """`VOICED_WRITE_GOLDEN=1` writes the files anew; read the difference before committing it."""
    runs = conversions(*CASES[name], model_file="graph.onnx", output_file="graph")
    text = "\n".join(
        f"# {run.purpose}{'' if run.keeps_artifact else ' (its artifact is thrown away)'}\n"
        f"# {' '.join(run.command('graph.cfg'))}\n{run.config_text}"
        for run in runs
    )
    path = GOLDEN / f"{name}.cfg"
    if os.environ.get("VOICED_WRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    assert {path.stem for path in GOLDEN.glob("*.cfg")} == set(CASES)


def many(count: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(((1, 4 * n, 80), (1, n), (1, 2 * n - 1, 512)) for n in range(1, count + 1))


BROKEN: dict[str, list[tuple[AscendGraph, AscendOptions]]] = {
    "input-names": [
        (replace(STATIC, inputs=("tokens", "a;b")), AscendOptions(P310)),
        (replace(STATIC, inputs=("tokens", "tokens")), AscendOptions(P310)),
    ],
    "gear-shapes": [
        (replace(STATIC, gears=()), AscendOptions(P310)),
        (replace(STATIC, gears=(((1, 5),),)), AscendOptions(P310)),
        (replace(STATIC, gears=(((1, 5), (64,)), ((1, 5), (64, 1)))), AscendOptions(P310)),
        (replace(STATIC, gears=(((1, 5), (-1,)),)), AscendOptions(P310)),
    ],
    "gear-count": [(replace(ENCODER, gears=many(101)), AscendOptions(B910))],
    "gears-differ": [(replace(STATIC, gears=STATIC.gears * 2), AscendOptions(B910))],
    "batch-range": [
        (replace(BATCH, gears=(((1, 64, 80), (1, 64)), ((2049, 64, 80), (2049, 64)))),
         AscendOptions(P310)),
    ],
    "dimensions": [
        (AscendGraph("step", tuple(f"k_{i}" for i in range(32)),
                     tuple(tuple((1, 20, 64, s) for _ in range(32)) for s in (32, 64))),
         AscendOptions(B910)),
    ],
    "dynamic-batch": [
        (ENCODER, AscendOptions(P310, dynamic=Dynamic.BATCH)),
        (replace(BATCH, gears=(((1, 64, 80), (2, 64)), ((2, 64, 80), (4, 64)))),
         AscendOptions(P310, dynamic=Dynamic.BATCH)),
    ],
    "dynamic-batch-provider": [
        (BATCH, AscendOptions(B910, dynamic=Dynamic.BATCH, provider=Provider.GE)),
    ],
    "body": [(replace(ENCODER, body="int8"), AscendOptions(P310))],
    "fp32-tail": [
        (STEP, AscendOptions(P310, precision=PrecisionMode.ENFORCE_FP16)),
        (STEP, AscendOptions(P310, precision=PrecisionMode.PREFERRED_OPTIMAL)),
    ],
    "fp16-body": [(STEP, AscendOptions(P310, precision=PrecisionMode.ENFORCE_FP32))],
    "mask-fits-fp16": [
        (replace(ENCODER, lowest_constant=-1e9), AscendOptions(P310)),
        (replace(ENCODER, lowest_constant=-1e9, body="fp32", fp32_tail=False),
         AscendOptions(P310, precision=PrecisionMode.ENFORCE_FP16)),
    ],
    "fused-all": [
        (STEP, AscendOptions(B910, fused=(FusedOp.ALL, FusedOp.FFN))),
        (STEP, AscendOptions(B910, fused=(FusedOp.FFN, FusedOp.FFN))),
    ],
    "flash-attention-bias": [
        (ENCODER, AscendOptions(B910, fused=(FusedOp.FLASH_ATTENTION,))),
        (ENCODER, AscendOptions(B910, fused=(FusedOp.ALL,))),
    ],
    "one-device": [(STEP, AscendOptions(B910, fused=(FusedOp.MATMUL_ALL_REDUCE,)))],
    "attention-attributes": [
        (STEP, AscendOptions(B910, attention=AttentionAttributes())),
        (STEP, AscendOptions(B910, fused=(FusedOp.ALL,),
                             attention=AttentionAttributes(seq_threshold=-1))),
        (STEP, AscendOptions(B910, fused=(FusedOp.ALL,),
                             attention=AttentionAttributes(inner_precise=2))),
    ],
    "aoe-provider": [
        (STEP, AscendOptions(B910, aoe=Aoe.API)),
        (STEP, AscendOptions(B910, aoe=Aoe.TOOL, provider=Provider.GE)),
    ],
    "aoe-tuning": [
        (STEP, AscendOptions(B910, aoe=Aoe.TOOL, tuning=())),
        (STEP, AscendOptions(B910, aoe=Aoe.TOOL, tuning=(Tuning.OPERATOR, Tuning.OPERATOR))),
    ],
    "variable-weights": [(STEP, AscendOptions(B910, variable_weights=True))],
    "compiler-cache": [
        (STEP, AscendOptions(B910, cache_dir="kernels")),
        (STEP, AscendOptions(B910, cache_dir="/a b")),
        (STEP, AscendOptions(B910, cache_dir="/kernels", provider=Provider.GE)),
    ],
    "external-weights": [(replace(STEP, weight_bytes=2**31), AscendOptions(B910))],
    "soc-version": [(STEP, AscendOptions(B910, soc_version="Ascend310P3"))],
}  # fmt: skip


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_each_rule_is_noticed_alone_and_named(rule: str) -> None:
    for graph, options in BROKEN[rule]:
        assert [problem.rule for problem in problems(graph, options)] == [rule]
        with pytest.raises(ConversionRefused, match=rf"nothing was started:\n  {rule}: found"):
            conversions(graph, options, model_file="a.onnx", output_file="a")


def test_all_broken_rules_are_told_at_once() -> None:
    options = AscendOptions(
        P310, fused=(FusedOp.ALL, FusedOp.MATMUL_ALL_REDUCE), variable_weights=True
    )
    with pytest.raises(ConversionRefused) as refused:
        conversions(
            replace(ENCODER, lowest_constant=-1e9), options, model_file="a.onnx", output_file="a"
        )
    assert {problem.rule for problem in refused.value.problems} == {
        "mask-fits-fp16", "fused-all", "flash-attention-bias", "one-device", "variable-weights"
    }  # fmt: skip


def test_the_limits_themselves_are_allowed() -> None:
    assert not problems(replace(ENCODER, gears=many(100)), AscendOptions(B910))
    names = tuple(f"k{i}" for i in range(MAX_DIMENSIONS))
    widest = AscendGraph("x", names, tuple(tuple((n,) for _ in names) for n in (1, 2048)))
    assert not problems(widest, AscendOptions(P310))


def test_with_gears_no_input_shape_is_given_on_the_command_line() -> None:
    (run,) = conversions(ENCODER, AscendOptions(P310), model_file="a.onnx", output_file="a")
    assert not any(argument.startswith("--inputShape") for argument in run.command("a.cfg"))
    (run,) = conversions(STATIC, AscendOptions(P310), model_file="a.onnx", output_file="a")
    assert "--inputShape=tokens:1,5;slot:64" in run.arguments


def test_the_aoe_api_tunes_one_kind_at_a_time_and_converts_again() -> None:
    options = AscendOptions(B910, provider=Provider.GE, aoe=Aoe.API)
    runs = conversions(STEP, options, model_file="a.onnx", output_file="a")
    assert [run.keeps_artifact for run in runs] == [False, False, True]
    modes = [run.sections["ascend_context"].get("aoe_mode") for run in runs]
    assert modes == ['"subgraph tuning"', '"operator tuning"', None]


def test_the_variants_hold_for_every_graph_that_is_shipped() -> None:
    for graph in (ENCODER, STEP):
        for chip in Chip:
            for variant in VARIANTS:
                assert not problems(graph, variant_options(graph, chip, variant))
    conformer = variant_options(ENCODER, B910, VARIANTS[1])
    assert FusedOp.FLASH_ATTENTION not in conformer.fused


SIZES = st.integers(1, 64)


@st.composite
def graphs(draw: st.DrawFn) -> AscendGraph:
    ranks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    shapes = st.tuples(*(st.tuples(*[SIZES] * rank) for rank in ranks))
    gears = draw(st.lists(shapes, min_size=1, max_size=8, unique=True))
    return AscendGraph("g", tuple(f"in_{i}" for i in range(len(ranks))), tuple(gears))


@given(graphs())
def test_what_is_written_reads_back_as_the_same_gears(graph: AscendGraph) -> None:
    shapes = ";".join(
        f"{name}:{','.join(map(str, shape))}"
        for name, shape in zip(graph.inputs, graph.patterns, strict=True)
    )
    assert parse_gears(shapes, dynamic_dims(graph)) == (graph.inputs, graph.gears)
    values = dynamic_dims(graph).split(";") if graph.is_dynamic else []
    assert {v.count(",") + 1 for v in values} <= {sum(p.count(-1) for p in graph.patterns)}


def test_a_group_with_a_value_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 values, expected 3"):
        parse_gears('"a:1,-1,-1;b:1,-1"', '"32,32,24;64,64"')
