#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spell_platform_fuzz::cast_body(data));
