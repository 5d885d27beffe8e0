"""The options of every job, once: the fields of these dataclasses are the arguments of the Python functions, and the
command line makes its flags and its help of them.

A class is a heading of --help, a job inherits the headings that it offers. None means that an option is not given; the
job then takes the default that the help names. An option that would have no effect raises InputError.

Nothing heavy is imported here, so that --help is instant.
"""

from __future__ import annotations

from .base import Option, Options, option
from .bench import BenchOptions, ServeBenchOptions
from .checkpoints import CompareOptions, EvaluateOptions, ModelOptions, PushOptions, VerifyOptions
from .conversions import (
    AllocateOptions,
    ConvertOptions,
    PlanOptions,
    QuantizeOptions,
    RelayoutOptions,
    RotateOptions,
    SlideOptions,
    SparsifyOptions,
)
from .machine import (
    ComputeOptions,
    DeviceOptions,
    OffloadOptions,
    OutputOptions,
    RevisionOptions,
    SourceOptions,
    WriteOptions,
)
from .recipe import (
    CalibrationOptions,
    CalibrationTexts,
    CodesOptions,
    GroupPatternOptions,
    GroupSchemeOptions,
    LayoutOptions,
    MethodOptions,
    PatternOptions,
    PresetOptions,
    RecipeFile,
    RecipeOptions,
    SchemeOptions,
    SmoothOptions,
    TrainingOptions,
)
from .target import TargetOptions, TimesOptions
from .tuning import TuneOptions
from .writing import ChatOptions, GenerateOptions, SamplingOptions

__all__ = [
    "AllocateOptions",
    "BenchOptions",
    "CalibrationOptions",
    "CalibrationTexts",
    "ChatOptions",
    "CodesOptions",
    "CompareOptions",
    "ComputeOptions",
    "ConvertOptions",
    "DeviceOptions",
    "EvaluateOptions",
    "GenerateOptions",
    "GroupPatternOptions",
    "GroupSchemeOptions",
    "LayoutOptions",
    "MethodOptions",
    "ModelOptions",
    "OffloadOptions",
    "Option",
    "Options",
    "OutputOptions",
    "PatternOptions",
    "PlanOptions",
    "PresetOptions",
    "PushOptions",
    "QuantizeOptions",
    "RecipeFile",
    "RecipeOptions",
    "RelayoutOptions",
    "RevisionOptions",
    "RotateOptions",
    "SamplingOptions",
    "SchemeOptions",
    "ServeBenchOptions",
    "SlideOptions",
    "SmoothOptions",
    "SourceOptions",
    "SparsifyOptions",
    "TargetOptions",
    "TimesOptions",
    "TrainingOptions",
    "TuneOptions",
    "VerifyOptions",
    "WriteOptions",
    "option",
]
