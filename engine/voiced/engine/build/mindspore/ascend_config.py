"""What the MindSpore Lite converter is told for an Ascend chip, and what it must not be told.

Pure: a graph's description and options in, configuration files and command lines out. A conversion
takes minutes and a wrong configuration often converts all the same and then computes wrongly, so
everything that can be known before is a rule of `RULES` and is checked here.

Sources: vendor page "Ascend Conversion Tool Description", r2.7.0 (sections, keys, limits, AOE);
mindspore-lite source 2.7.0 (the total of dimensions, the names of `optimize`). None of it was run
on a card: `voiced selftest` is how the owner of one finds out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from voiced.engine.errors import EngineError

Shape = tuple[int, ...]
Sections = Mapping[str, Mapping[str, str]]

MAX_GEARS = 100
"""Gears of one artifact; the vendor recommends 3 or 4."""
MAX_BATCH = 2048
MAX_DIMENSIONS = 127
"""Dimensions of all inputs of a dynamic artifact together (source: fewer than 128)."""
MAX_FLOAT16 = 65504.0
MAX_EMBEDDED_WEIGHTS = 2 * 1024**3
"""Bytes from which one protobuf file cannot hold the weights."""


class Chip(StrEnum):
    """Chip families that the converter tells apart."""

    ASCEND_310P = "310P"
    ASCEND_910B = "910B"


OPTIMIZE = {Chip.ASCEND_310P: "ascend_oriented", Chip.ASCEND_910B: "ascend_oriented:910b"}
"""Chip → the converter's `optimize`; any other suffix raises there."""


class Provider(StrEnum):
    """Who runs the artifact on the device."""

    ACL = ""
    GE = "ge"


class PrecisionMode(StrEnum):
    """The converter's `precision_mode`. Its own default is `enforce_fp16`."""

    ENFORCE_FP32 = "enforce_fp32"
    PREFERRED_FP32 = "preferred_fp32"
    ENFORCE_FP16 = "enforce_fp16"
    ENFORCE_ORIGIN = "enforce_origin"
    PREFERRED_OPTIMAL = "preferred_optimal"


class FusedOp(StrEnum):
    """Values of `plugin_custom_ops`."""

    ALL = "All"
    """FlashAttention, LayerNormV3, GeGluV2 and GroupNormSilu."""
    FLASH_ATTENTION = "FlashAttention"
    LAYER_NORM_V3 = "LayerNormV3"
    GEGLU_V2 = "GeGluV2"
    GROUP_NORM_SILU = "GroupNormSilu"
    FFN = "FFN"
    ADD_LAYER_NORM = "AddLayerNorm"
    MATMUL_ALL_REDUCE = "MatMulAllReduce"
    BATCH_MATMUL_TO_MATMUL = "BatchMatmulToMatmul"


class Layout(StrEnum):
    """`input_layout` of FlashAttention."""

    BNSD = "BNSD"
    BSH = "BSH"
    BNSD_BSND = "BNSD_BSND"


class Dynamic(StrEnum):
    """How gears are written. `batch` is for graphs in which only the leading axis changes."""

    ND = "nd"
    BATCH = "batch"


class Tuning(StrEnum):
    """What AOE tunes."""

    SUBGRAPH = "subgraph tuning"
    OPERATOR = "operator tuning"


class Aoe(StrEnum):
    """How AOE is called."""

    OFF = "off"
    TOOL = "tool"
    """The `aoe` program, called by the converter, which then saves the tuned artifact."""
    API = "api"
    """Needs provider `ge`; writes only the knowledge base, so that one more conversion follows."""


@dataclass(frozen=True, slots=True)
class AscendGraph:
    """What the rules need to know of a graph."""

    name: str
    inputs: tuple[str, ...]
    """Names, in the graph's own order: values of a gear are listed in it."""
    gears: tuple[tuple[Shape, ...], ...]
    """Per gear the shape of every input. Axes that differ between gears become dynamic."""
    body: str = "fp16"
    """Type of the weights and of the arithmetic between them, fp16 or fp32."""
    fp32_tail: bool = True
    """Scores, log-softmax, beam choice are in fp32 and must stay so: fp16 steps by 0.03 at -50."""
    lowest_constant: float = -1e4
    """The most negative constant of an additive mask."""
    relative_bias: bool = False
    """Attention adds a relative position term (Conformer)."""
    weight_bytes: int = 0

    @property
    def patterns(self) -> tuple[Shape, ...]:
        """The inputs' shapes with -1 where gears differ."""
        return tuple(
            tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))
            for shapes in zip(*self.gears, strict=True)
        )

    @property
    def is_dynamic(self) -> bool:
        """More than one gear."""
        return len(self.gears) > 1


@dataclass(frozen=True, slots=True)
class AttentionAttributes:
    """`op_attrs` of the fused attention."""

    layout: Layout = Layout.BNSD
    seq_threshold: int = 0
    """Shorter sequences keep the plain operators."""
    inner_precise: int | None = None
    """0 or 1, as CANN's operator defines it; None leaves the converter's default (fast)."""


@dataclass(frozen=True, slots=True)
class AscendOptions:
    """What the artifact is to be."""

    chip: Chip
    provider: Provider = Provider.ACL
    dynamic: Dynamic = Dynamic.ND
    precision: PrecisionMode = PrecisionMode.ENFORCE_ORIGIN
    fused: tuple[FusedOp, ...] = ()
    attention: AttentionAttributes | None = None
    aoe: Aoe = Aoe.OFF
    tuning: tuple[Tuning, ...] = (Tuning.SUBGRAPH, Tuning.OPERATOR)
    """What AOE tunes, in this order."""
    cache_dir: str = ""
    """Folder of the operator compiler's cache; empty for the converter's default."""
    external_weights: bool = False
    variable_weights: bool = False
    """Weights that the running model replaces (`update_weights`)."""
    soc_version: str = ""
    """Exact chip, e.g. Ascend310P3; empty takes the one of the machine."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One run of the converter."""

    purpose: str
    sections: Sections
    arguments: tuple[str, ...]
    """`converter_lite` and its flags, but for the configuration's file."""
    keeps_artifact: bool = True
    """False for a run that only tunes."""

    @property
    def config_text(self) -> str:
        """The configuration file."""
        blocks = [
            "\n".join((f"[{name}]", *(f"{key}={value}" for key, value in keys.items())))
            for name, keys in self.sections.items()
            if keys
        ]
        return "\n\n".join(blocks) + "\n"

    def command(self, config_file: str) -> tuple[str, ...]:
        """The whole command line; `=` without spaces, as the tool asks for."""
        return (*self.arguments, f"--configFile={config_file}")


@dataclass(frozen=True, slots=True)
class Rule:
    """Something that must hold before a conversion may start."""

    name: str
    text: str
    """What is expected, and why where it is not plain."""
    broken: Callable[[AscendGraph, AscendOptions], str | None]
    """What was found instead, or None."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that is broken."""

    rule: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: found {self.found}, expected {self.expected}"


class ConversionRefused(EngineError):
    """Graph and options do not go together; nothing was started."""

    code = "conversion_refused"

    def __init__(self, graph: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(graph, problems)
        self.graph, self.problems = graph, problems

    def __str__(self) -> str:
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        return f"conversion of {self.graph} refused, nothing was started:{lines}"


_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_FLASH = {FusedOp.ALL, FusedOp.FLASH_ATTENTION}


def _has_flash(options: AscendOptions) -> bool:
    return bool(_FLASH & set(options.fused))


def _input_names(graph: AscendGraph, _: AscendOptions) -> str | None:
    wrong = [name for name in graph.inputs if not _NAME.fullmatch(name)]
    if wrong:
        return f"input {wrong[0]!r}"
    return "a name twice" if len(set(graph.inputs)) != len(graph.inputs) else None


def _gear_shapes(graph: AscendGraph, _: AscendOptions) -> str | None:
    if not graph.inputs or not graph.gears:
        return "no input or no gear"
    ranks = [tuple(len(shape) for shape in gear) for gear in graph.gears]
    for number, gear in enumerate(graph.gears, 1):
        if len(gear) != len(graph.inputs):
            return f"{len(gear)} shapes for {len(graph.inputs)} inputs in gear {number}"
        if ranks[number - 1] != ranks[0]:
            return f"another number of axes in gear {number} than in gear 1"
        if any(size < 1 for shape in gear for size in shape):
            return f"a size below 1 in gear {number}"
    return None


def _gear_count(graph: AscendGraph, _: AscendOptions) -> str | None:
    return f"{len(graph.gears)} gears" if len(graph.gears) > MAX_GEARS else None


def _gears_differ(graph: AscendGraph, _: AscendOptions) -> str | None:
    return "two equal gears" if len(set(graph.gears)) != len(graph.gears) else None


def _batch_range(graph: AscendGraph, _: AscendOptions) -> str | None:
    for index, pattern in enumerate(graph.patterns):
        if pattern and pattern[0] == -1:
            largest = max(gear[index][0] for gear in graph.gears)
            if largest > MAX_BATCH:
                return f"{largest} for {graph.inputs[index]}"
    return None


def _dimensions(graph: AscendGraph, _: AscendOptions) -> str | None:
    total = sum(len(shape) for shape in graph.gears[0])
    if graph.is_dynamic and total > MAX_DIMENSIONS:
        return f"{total} dimensions over {len(graph.inputs)} inputs"
    return None


def _dynamic_batch(graph: AscendGraph, options: AscendOptions) -> str | None:
    if options.dynamic is not Dynamic.BATCH or not graph.is_dynamic:
        return None
    for name, pattern in zip(graph.inputs, graph.patterns, strict=True):
        if pattern[:1] != (-1,) or -1 in pattern[1:]:
            return f"{name}:{_numbers(pattern)}"
    if any(len({shape[0] for shape in gear}) != 1 for gear in graph.gears):
        return "inputs of one gear with different batches"
    return None


def _batch_provider(graph: AscendGraph, options: AscendOptions) -> str | None:
    wrong = options.dynamic is Dynamic.BATCH and options.provider is Provider.GE
    return "provider ge" if wrong and graph.is_dynamic else None


def _body(graph: AscendGraph, _: AscendOptions) -> str | None:
    return None if graph.body in {"fp16", "fp32"} else repr(graph.body)


def _fp32_tail(graph: AscendGraph, options: AscendOptions) -> str | None:
    keeps = {PrecisionMode.ENFORCE_ORIGIN, PrecisionMode.ENFORCE_FP32}
    return None if not graph.fp32_tail or options.precision in keeps else options.precision.value


def _fp16_body(graph: AscendGraph, options: AscendOptions) -> str | None:
    wide = {PrecisionMode.ENFORCE_FP32, PrecisionMode.PREFERRED_FP32}
    return options.precision.value if graph.body == "fp16" and options.precision in wide else None


def _mask(graph: AscendGraph, options: AscendOptions) -> str | None:
    narrows = options.precision not in {PrecisionMode.ENFORCE_ORIGIN, PrecisionMode.ENFORCE_FP32}
    if (graph.body == "fp16" or narrows) and abs(graph.lowest_constant) > MAX_FLOAT16:
        return f"{graph.lowest_constant:g}"
    return None


def _fused_all(_: AscendGraph, options: AscendOptions) -> str | None:
    if FusedOp.ALL in options.fused and len(options.fused) > 1:
        return ",".join(options.fused)
    return "an operator twice" if len(set(options.fused)) != len(options.fused) else None


def _flash_bias(graph: AscendGraph, options: AscendOptions) -> str | None:
    return ",".join(options.fused) if graph.relative_bias and _has_flash(options) else None


def _all_reduce(_: AscendGraph, options: AscendOptions) -> str | None:
    return "MatMulAllReduce" if FusedOp.MATMUL_ALL_REDUCE in options.fused else None


def _attributes(_: AscendGraph, options: AscendOptions) -> str | None:
    attributes = options.attention
    if attributes is None:
        return None
    if not _has_flash(options):
        return f"attributes with {','.join(options.fused) or 'no fused operator'}"
    if attributes.seq_threshold < 0:
        return f"seq_threshold {attributes.seq_threshold}"
    if attributes.inner_precise not in {None, 0, 1}:
        return f"inner_precise {attributes.inner_precise}"
    return None


def _aoe_provider(_: AscendGraph, options: AscendOptions) -> str | None:
    wanted = {Aoe.TOOL: Provider.ACL, Aoe.API: Provider.GE}.get(options.aoe, options.provider)
    return f"{options.aoe} with {_shown(options.provider)}" if options.provider != wanted else None


def _aoe_tuning(_: AscendGraph, options: AscendOptions) -> str | None:
    if options.aoe is Aoe.OFF:
        return None
    if not options.tuning:
        return "nothing to tune"
    return "a kind twice" if len(set(options.tuning)) != len(options.tuning) else None


def _variables(_: AscendGraph, options: AscendOptions) -> str | None:
    if options.variable_weights and options.provider is not Provider.GE:
        return f"variable weights with {_shown(options.provider)}"
    return None


def _cache(_: AscendGraph, options: AscendOptions) -> str | None:
    if not options.cache_dir:
        return None
    if not options.cache_dir.startswith("/") or re.search(r"[\s\"=;]", options.cache_dir):
        return repr(options.cache_dir)
    return "provider ge" if options.provider is Provider.GE else None


def _weights(graph: AscendGraph, options: AscendOptions) -> str | None:
    if graph.weight_bytes >= MAX_EMBEDDED_WEIGHTS and not options.external_weights:
        return f"{graph.weight_bytes} bytes of weights inside the artifact"
    return None


def _soc(_: AscendGraph, options: AscendOptions) -> str | None:
    soc = options.soc_version
    return repr(soc) if soc and not soc.startswith(f"Ascend{options.chip}") else None


RULES = (
    Rule("input-names", "plain names, each once: the syntax has no quoting", _input_names),
    Rule("gear-shapes", "every gear to give every input a shape of one rank, sizes from 1 on "
         "(each -1 of each input gets a value per group)", _gear_shapes),
    Rule("gear-count", f"at most {MAX_GEARS} gears (3-4 recommended)", _gear_count),
    Rule("gears-differ", "each gear once", _gears_differ),
    Rule("batch-range", f"a leading axis of at most {MAX_BATCH}", _batch_range),
    Rule("dimensions", f"at most {MAX_DIMENSIONS} dimensions over all inputs of a dynamic "
         "artifact; stack per-layer tensors into one", _dimensions),
    Rule("dynamic-batch", "with dynamic batch, an equal leading axis of every input to be the only "
         "one that changes; else use nd", _dynamic_batch),
    Rule("dynamic-batch-provider", "dynamic batch with provider acl: [ge_graph_options] knows "
         "ge.dynamicDims only", _batch_provider),
    Rule("body", "a body in fp16 or fp32", _body),
    Rule("fp32-tail", "precision enforce_origin for a graph whose scores stay in fp32", _fp32_tail),
    Rule("fp16-body", "precision enforce_origin or enforce_fp16 for an fp16 body", _fp16_body),
    Rule("mask-fits-fp16", f"mask constants within {MAX_FLOAT16:g} where fp16 computes them "
         "(-1e4): -inf times 0 is no number", _mask),
    Rule("fused-all", "All alone, every other operator once", _fused_all),
    Rule("flash-attention-bias", "no FlashAttention (nor All) for attention with a relative "
         "position term: its pattern does not hold", _flash_bias),
    Rule("one-device", "no MatMulAllReduce: a worker owns one device", _all_reduce),
    Rule("attention-attributes", "op attributes only with FlashAttention; seq_threshold from 0, "
         "inner_precise 0 or 1", _attributes),
    Rule("aoe-provider", "AOE tool with provider acl, AOE API with provider ge: the provider "
         "decides which of the two runs", _aoe_provider),
    Rule("aoe-tuning", "subgraph or operator tuning, each once", _aoe_tuning),
    Rule("variable-weights", "provider ge for weights that are replaced", _variables),
    Rule("compiler-cache", "an absolute folder without blanks, and provider acl", _cache),
    Rule("external-weights", "external weights from 2 GiB on: protobuf's limit", _weights),
    Rule("soc-version", "a chip of the family that is converted for", _soc),
)  # fmt: skip

_FIRST = {"input-names", "gear-shapes"}
"""The others may rely on these."""


def problems(graph: AscendGraph, options: AscendOptions) -> tuple[Problem, ...]:
    """Every rule that is broken; empty when the conversion may start."""

    def broken(rules: Sequence[Rule]) -> tuple[Problem, ...]:
        found = ((rule, rule.broken(graph, options)) for rule in rules)
        return tuple(Problem(rule.name, rule.text, text) for rule, text in found if text)

    first = broken([rule for rule in RULES if rule.name in _FIRST])
    return first or broken([rule for rule in RULES if rule.name not in _FIRST])


def conversions(
    graph: AscendGraph, options: AscendOptions, *, model_file: str, output_file: str
) -> tuple[Conversion, ...]:
    """Plan the runs of the converter, in order; the last one makes the artifact.

    Args:
        graph: The graph to convert.
        options: What it is to become.
        model_file: The ONNX file.
        output_file: Where the artifact goes, without suffix.

    Raises:
        ConversionRefused: A rule is broken; the error lists all that are.
    """
    found = problems(graph, options)
    if found:
        raise ConversionRefused(graph.name, found)
    arguments = [
        "converter_lite",
        "--fmk=ONNX",
        f"--modelFile={model_file}",
        f"--outputFile={output_file}",
        "--saveType=MINDIR",
        f"--optimize={OPTIMIZE[options.chip]}",
    ]
    if not graph.is_dynamic:  # with gears the shapes stand in the configuration alone
        arguments.append(f"--inputShape={_shapes(graph.inputs, graph.gears[0])}")

    def run(purpose: str, *, keeps: bool = True, tuning: tuple[Tuning, ...] = ()) -> Conversion:
        sections = _sections(graph, options, tuning, after_tuning=options.aoe is not Aoe.OFF)
        return Conversion(purpose, sections, tuple(arguments), keeps)

    if options.aoe is Aoe.TOOL:
        return (run("tune and convert", tuning=options.tuning),)
    tuned = options.tuning if options.aoe is Aoe.API else ()
    return (
        *(run(f"{kind}, knowledge base only", keeps=False, tuning=(kind,)) for kind in tuned),
        run("convert"),
    )


def _sections(
    graph: AscendGraph,
    options: AscendOptions,
    tuning: tuple[Tuning, ...],
    *,
    after_tuning: bool,
) -> Sections:
    context = {"precision_mode": options.precision.value}
    if options.provider is Provider.GE:
        context["provider"] = "ge"
    if options.fused:
        context["plugin_custom_ops"] = ",".join(options.fused)
    if options.attention is not None:
        context["op_attrs"] = _op_attrs(options.attention)
    if tuning:
        context["aoe_mode"] = f'"{", ".join(tuning)}"'
    sections: dict[str, dict[str, str]] = {
        "ascend_context": context,
        "acl_build_options": {},
        "acl_init_options": {},
        "ge_graph_options": {},
        "ge_session_options": {},
    }
    if graph.is_dynamic:
        _write_gears(graph, options, sections)
    if options.external_weights:
        home = "ge_session_options" if options.provider is Provider.GE else "acl_build_options"
        sections[home]["ge.externalWeight"] = "1"
    if options.soc_version and options.provider is Provider.ACL:
        sections["acl_init_options"]["ge.socVersion"] = options.soc_version
    if options.provider is Provider.ACL and (options.cache_dir or after_tuning):
        # kernels that were compiled before the tuning must not be taken again
        mode = "force" if after_tuning else "enable"
        sections["acl_init_options"]["ge.op_compiler_cache_mode"] = mode
        if options.cache_dir:
            sections["acl_init_options"]["ge.op_compiler_cache_dir"] = options.cache_dir
    return sections


def _write_gears(
    graph: AscendGraph, options: AscendOptions, sections: dict[str, dict[str, str]]
) -> None:
    if options.dynamic is Dynamic.BATCH:
        batches = ",".join(f"[{gear[0][0]}]" for gear in graph.gears)
        named = zip(graph.inputs, graph.patterns, strict=True)
        sections["ascend_context"] |= {
            "input_shape": ";".join(f"{name}:[{_numbers(shape)}]" for name, shape in named),
            "dynamic_dims": ";".join([batches] * len(graph.inputs)),
        }
        return
    shapes, values = _shapes(graph.inputs, graph.patterns), dynamic_dims(graph)
    if options.provider is Provider.GE:
        sections["ge_graph_options"] |= {"ge.inputShape": shapes, "ge.dynamicDims": values}
        return
    sections["acl_build_options"] |= {
        "input_format": '"ND"',
        "input_shape": f'"{shapes}"',
        "ge.dynamicDims": f'"{values}"',
    }


def dynamic_dims(graph: AscendGraph) -> str:
    """Write the gears: one group each, a value for every -1 of every input in order."""
    return ";".join(
        ",".join(
            str(size)
            for pattern, shape in zip(graph.patterns, gear, strict=True)
            for free, size in zip(pattern, shape, strict=True)
            if free == -1
        )
        for gear in graph.gears
    )


def _op_attrs(attributes: AttentionAttributes) -> str:
    """`operator:attribute:value`; the page shows one, how several are parted is a guess."""
    values = {"input_layout": attributes.layout.value}
    if attributes.seq_threshold:
        values["seq_threshold"] = str(attributes.seq_threshold)
    if attributes.inner_precise is not None:
        values["inner_precise"] = str(attributes.inner_precise)
    return ";".join(f"{FusedOp.FLASH_ATTENTION}:{key}:{value}" for key, value in values.items())


def _shapes(names: Sequence[str], shapes: Sequence[Shape]) -> str:
    return ";".join(f"{n}:{_numbers(s)}" for n, s in zip(names, shapes, strict=True))


def _numbers(shape: Shape) -> str:
    return ",".join(str(size) for size in shape)


def _shown(provider: Provider) -> str:
    return f"provider {provider.value or 'acl'}"


@dataclass(frozen=True, slots=True)
class Variant:
    """A step of the comparison that `voiced selftest` reports: each adds to the one before."""

    name: str
    text: str
    fused: tuple[FusedOp, ...] = ()
    aoe: Aoe = Aoe.OFF
    attention: AttentionAttributes | None = field(default=None)


VARIANTS = (
    Variant("plain", "out of the box"),
    Variant(
        "fused",
        "fused operators",
        fused=(FusedOp.FLASH_ATTENTION, FusedOp.LAYER_NORM_V3),
        attention=AttentionAttributes(),
    ),
    Variant(
        "aoe",
        "fused operators, tuned by AOE",
        fused=(FusedOp.FLASH_ATTENTION, FusedOp.LAYER_NORM_V3),
        aoe=Aoe.TOOL,
        attention=AttentionAttributes(),
    ),
)


def variant_options(graph: AscendGraph, chip: Chip, variant: Variant) -> AscendOptions:
    """The variant for one graph: FlashAttention is left out where its pattern cannot hold."""
    fused = tuple(op for op in variant.fused if not (graph.relative_bias and op in _FLASH))
    return AscendOptions(
        chip,
        fused=fused,
        attention=variant.attention if FusedOp.FLASH_ATTENTION in fused else None,
        aoe=variant.aoe,
        external_weights=graph.weight_bytes >= MAX_EMBEDDED_WEIGHTS,
    )
