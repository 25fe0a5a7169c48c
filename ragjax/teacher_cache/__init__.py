"""A teacher that is paid for once: what it says of a text, kept on disk, checked, and read in training."""

from ragjax.teacher_cache.asked import asked
from ragjax.teacher_cache.checked import check_cache
from ragjax.teacher_cache.identity import teacher_digest, text_digest
from ragjax.teacher_cache.manifest import Held, Kept, Manifest, read_manifest
from ragjax.teacher_cache.read import TeacherCache
from ragjax.teacher_cache.write import Stopped, write_cache

__all__ = [
    "Held",
    "Kept",
    "Manifest",
    "Stopped",
    "TeacherCache",
    "asked",
    "check_cache",
    "read_manifest",
    "teacher_digest",
    "text_digest",
    "write_cache",
]
