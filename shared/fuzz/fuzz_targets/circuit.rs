#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ringlane_fuzz::circuit::circuit(data);
});
