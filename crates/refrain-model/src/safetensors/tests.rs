use proptest::prelude::*;

use super::*;

/// A file with this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Vec<StoredTensor>, ModelError> {
    parse_safetensors_header(Path::new("m.safetensors"), bytes, bytes.len() as u64)
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
    "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   "#;

#[test]
fn reads_tensors_in_the_order_of_their_data() {
    let bytes = file(TWO, 16);
    let data = bytes.len() - 16;
    let tensors = parse(&bytes).unwrap();
    let a = StoredTensor { name: "a".into(), dtype: "F32", shape: vec![1], range: data..data + 4 };
    let b = StoredTensor { name: "b".into(), dtype: "BF16", shape: vec![2, 3], range: data + 4..data + 16 };
    assert_eq!(tensors, [a, b]);
    assert_eq!(tensors[0].usable_dtype(), Some(Dtype::F32));
}

#[test]
fn scalars_and_empty_tensors_are_fine() {
    let header = r#"{"e":{"dtype":"F16","shape":[0,18446744073709551615],"data_offsets":[0,0]},
        "s":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}"#;
    let tensors = parse(&file(header, 2)).unwrap();
    assert_eq!(tensors.iter().map(|t| t.range.len()).collect::<Vec<_>>(), [0, 2]);
    assert!(parse(&file("{}", 0)).unwrap().is_empty());
}

#[test]
fn types_that_cannot_be_used_are_read_all_the_same() {
    let header = r#"{"q":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]},
        "p":{"dtype":"F4","shape":[2],"data_offsets":[3,4]}}"#;
    let tensors = parse(&file(header, 4)).unwrap();
    assert_eq!(tensors.iter().map(StoredTensor::usable_dtype).collect::<Vec<_>>(), [None, None]);
}

#[test]
fn a_lie_is_answered_with_file_and_tensor() {
    let entry = |body: &str| format!(r#"{{"w":{{{body}}}}}"#);
    let mut messages = String::new();
    let mut refuse = |bytes: &[u8]| {
        let error = parse(bytes).expect_err(&String::from_utf8_lossy(bytes));
        messages.push_str(&format!("{error}\n"));
    };
    refuse(b"");
    refuse(b"1234567");
    refuse(&u64::MAX.to_le_bytes());
    refuse(&100_000_001u64.to_le_bytes());
    refuse(&file(TWO, 16)[..60]);
    refuse(&file(TWO, 16)[..8]);
    refuse(&file("", 0));
    refuse(&file("[]", 0));
    refuse(&file("{} {}", 0));
    refuse(&file("{\"w\":", 0));
    refuse(&file(&"[".repeat(5000), 0));
    refuse(&file("\u{feff}{}", 0));
    // Data that the file hasn't, or that no tensor has.
    refuse(&file(TWO, 15));
    refuse(&file(TWO, 17));
    refuse(&file("{}", 1));
    // One tensor.
    refuse(&file(&entry(r#""dtype":"F32","shape":[1]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[1],"data_offsets":[0]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[1],"data_offsets":[0,-4]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[-1],"data_offsets":[0,4]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[1.5],"data_offsets":[0,4]"#), 4));
    refuse(&file(&entry(r#""dtype":"Q4_K","shape":[1],"data_offsets":[0,4]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#), 4));
    refuse(&file(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#), 4));
    refuse(&file(&entry(r#""dtype":"F4","shape":[3],"data_offsets":[0,2]"#), 2));
    refuse(&file(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]"#), 8));
    refuse(&file(&entry(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#), 0));
    refuse(&file(&entry(r#""dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]"#), 4));
    // Two tensors.
    let pair = |first: (usize, usize), second: (usize, usize)| {
        let one = |name: &str, (begin, end): (usize, usize)| {
            let shape = end - begin;
            format!(r#""{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#)
        };
        format!("{{{},{}}}", one("first", first), one("second", second))
    };
    refuse(&file(&pair((0, 4), (2, 6)), 6));
    refuse(&file(&pair((0, 6), (2, 4)), 6));
    refuse(&file(&pair((0, 4), (0, 4)), 4));
    refuse(&file(&pair((0, 2), (4, 6)), 6));
    refuse(&file(&pair((0, 2), (2, 4)).replace("second", "first"), 4));
    insta::assert_snapshot!(messages);
}

#[test]
fn a_beginning_that_ends_inside_the_header_is_refused() {
    let bytes = file(TWO, 16);
    assert!(parse_safetensors_header(Path::new("m"), &bytes[..bytes.len() - 16], bytes.len() as u64).is_ok());
    assert!(parse_safetensors_header(Path::new("m"), &bytes[..40], bytes.len() as u64).is_err());
}

/// Whatever comes out lies inside the file, behind the header, with the bytes that type and shape need, and disjoint.
fn check_sound(bytes: &[u8]) {
    let Ok(tensors) = parse(bytes) else { return };
    let mut end = 0;
    for tensor in &tensors {
        assert!(tensor.range.start >= end.max(LENGTH_BYTES) && tensor.range.end <= bytes.len());
        assert!(tensor.range.start <= tensor.range.end);
        end = tensor.range.end;
        if let Some(dtype) = tensor.usable_dtype() {
            assert_eq!(tensor.range.len(), tensor.shape.iter().product::<usize>() * dtype.bytes());
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_sound(&bytes);
        let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
        framed.extend(&bytes);
        check_sound(&framed);
    }

    #[test]
    fn mutated_files_never_panic(changes in proptest::collection::vec((0usize..200, any::<u8>()), 1..4), cut in 0usize..400) {
        let mut bytes = file(TWO, 16);
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        check_sound(&bytes);
    }

    #[test]
    fn changed_numbers_never_give_a_view_outside(numbers in proptest::collection::vec(
        prop_oneof![0u64..20, Just(u64::MAX), Just(1 << 63), Just(1 << 32), any::<u64>()], 7), data in 0usize..40) {
        let [a, b, c, d, e, f, g] = numbers[..] else { unreachable!() };
        let header = format!(
            r#"{{"a":{{"dtype":"F16","shape":[{a},{b}],"data_offsets":[{c},{d}]}},
            "b":{{"dtype":"F32","shape":[{e}],"data_offsets":[{f},{g}]}}}}"#
        );
        check_sound(&file(&header, data));
    }
}
