#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm::kvm::fuzzing::fw_cfg(data));
