//! Benches: figures that anyone can measure again. Each is printed as `bench NAME VALUE UNIT [vs PEER VALUE ratio R]`
//! and written to `target/bench/NAME.json`.

pub mod api;
pub mod disk;
pub mod figure;
pub mod fio;
pub mod measure;
pub mod vmm;
