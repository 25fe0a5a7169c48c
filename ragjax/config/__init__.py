"""The schema of a run: frozen dataclasses, checked when built, read without importing JAX.

A config file is a Python file that binds `config` to a `Compress` or a `Pretrain`. Every field can be
overridden on the command line (`--train.learning-rate 3e-4`); the resolved config is stored as
JSON in the run folder and can itself be run again.
"""

from ragjax.config.architecture import Architecture
from ragjax.config.bench import Bench
from ragjax.config.data import Data
from ragjax.config.decoding import CacheDtype, Decoding, EarlyStopping
from ragjax.config.distill import Distill
from ragjax.config.evaluate import Evaluate
from ragjax.config.fake_quantize import FakeQuantize, TrainedScheme
from ragjax.config.mesh import Mesh
from ragjax.config.on_policy import OnPolicy
from ragjax.config.one_shot import OneShot, OneShotBudget, OneShotMethod
from ragjax.config.quantize import Quantize, QuantizeMethod, SchemeName
from ragjax.config.runs import Compress, Pretrain, to_dict
from ragjax.config.serve import Serve
from ragjax.config.shrink import Importance, Shrink, Shrinkable
from ragjax.config.sparsity import Budget, Pattern, Score, Sparsity, SparsityMethod, SparsitySchedule
from ragjax.config.student import Student
from ragjax.config.teacher import Teacher
from ragjax.config.train import Dtype, Optimizer, RateSchedule, Remat, Train
from ragjax.config.writing import Writing

__all__ = [
    "Architecture",
    "Bench",
    "Budget",
    "CacheDtype",
    "Compress",
    "Data",
    "Decoding",
    "Distill",
    "Dtype",
    "EarlyStopping",
    "Evaluate",
    "FakeQuantize",
    "Importance",
    "Mesh",
    "OnPolicy",
    "OneShot",
    "OneShotBudget",
    "OneShotMethod",
    "Optimizer",
    "Pattern",
    "Pretrain",
    "Quantize",
    "QuantizeMethod",
    "RateSchedule",
    "Remat",
    "SchemeName",
    "Score",
    "Serve",
    "Shrink",
    "Shrinkable",
    "Sparsity",
    "SparsityMethod",
    "SparsitySchedule",
    "Student",
    "Teacher",
    "Train",
    "TrainedScheme",
    "Writing",
    "to_dict",
]
