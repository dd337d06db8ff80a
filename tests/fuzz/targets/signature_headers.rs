#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| progress_hub::fuzz::signature_headers(data));
