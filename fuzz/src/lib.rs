//! Fuzz targets: see `docs/fuzzing.md`. What they do with their bytes is
//! shared with the test that runs in CI.

#[path = "../../tests/hostile/exercise.rs"]
pub mod exercise;
#[path = "../../tests/hostile/python.rs"]
pub mod python;
#[path = "../../tests/simulate/mod.rs"]
pub mod simulate;
