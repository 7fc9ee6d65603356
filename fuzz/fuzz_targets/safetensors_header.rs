//! A safetensors file by a stranger: an error, or tensors that lie inside the file and don't overlap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use refrain_model::parse_safetensors_header;
use std::path::Path;

fuzz_target!(|file: &[u8]| {
    let length = file.len() as u64;
    let Ok(tensors) = parse_safetensors_header(Path::new("fuzz"), file, length) else { return };
    let mut end = 0;
    for tensor in tensors {
        let range = &tensor.range;
        assert!(range.start >= end && range.end >= range.start && range.end <= file.len(), "{tensor:?}");
        end = range.end;
    }
});
