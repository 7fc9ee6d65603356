use super::*;
use proptest::prelude::*;

/// An ELF header, one program header of a note, and the note with a document.
fn object(document: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 64 + 56];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[18..20].copy_from_slice(&224_u16.to_le_bytes());
    image[32..40].copy_from_slice(&64_u64.to_le_bytes());
    image[54..56].copy_from_slice(&56_u16.to_le_bytes());
    image[56..58].copy_from_slice(&1_u16.to_le_bytes());
    let mut notes = Vec::new();
    // A note of somebody else comes first.
    for (owner, kind, contents) in [(&b"GNU\0"[..], 3_u32, &b"abcde"[..]), (b"AMDGPU\0", 32, document)] {
        notes.extend(u32::try_from(owner.len()).unwrap().to_le_bytes());
        notes.extend(u32::try_from(contents.len()).unwrap().to_le_bytes());
        notes.extend(kind.to_le_bytes());
        notes.extend(owner);
        notes.resize(notes.len().next_multiple_of(4), 0);
        notes.extend(contents);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    image[64..68].copy_from_slice(&4_u32.to_le_bytes());
    image[72..80].copy_from_slice(&120_u64.to_le_bytes());
    image[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
    image.extend(notes);
    image
}

fn string(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    if length < 32 { [&[0xa0 | length], text.as_bytes()].concat() } else { [&[0xd9, length], text.as_bytes()].concat() }
}

fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0xde, 0, u8::try_from(pairs.len()).unwrap()];
    for (key, value) in pairs {
        bytes.extend(string(key));
        bytes.extend(value);
    }
    bytes
}

fn array(values: &[Vec<u8>]) -> Vec<u8> {
    [&[0x90 | u8::try_from(values.len()).unwrap()], values.concat().as_slice()].concat()
}

fn document() -> Vec<u8> {
    let argument = |offset: u8, size: u8, kind: &str| {
        map(&[(".offset", vec![offset]), (".size", vec![size]), (".value_kind", string(kind))])
    };
    let arguments = [argument(0, 8, "global_buffer"), argument(8, 4, "by_value"), argument(16, 8, "hidden_none")];
    let kernel = map(&[
        (".args", array(&arguments)),
        (".group_segment_fixed_size", vec![0xcd, 0x10, 0x20]),
        (".language", string("OpenCL C")),
        (".language_version", array(&[vec![2], vec![0]])),
        (".max_flat_workgroup_size", vec![0xcd, 1, 0]),
        (".name", string("a_kernel_with_a_name_of_more_than_31_bytes")),
        (".private_segment_fixed_size", vec![0]),
        (".sgpr_count", vec![30]),
        (".sgpr_spill_count", vec![2]),
        (".uses_dynamic_stack", vec![0xc2]),
        (".vgpr_count", vec![0xcc, 0x80]),
        (".vgpr_spill_count", vec![0xce, 0, 0, 0, 3]),
        (".wavefront_size", vec![64]),
    ]);
    map(&[
        ("amdhsa.kernels", array(&[kernel])),
        ("amdhsa.target", string("amdgcn-amd-amdhsa--gfx906:xnack-")),
        ("amdhsa.version", array(&[vec![1], vec![1]])),
    ])
}

fn metadata_error(document: &[u8]) -> String {
    CodeObject::read(&object(document)).unwrap_err().to_string()
}

#[test]
fn every_number_of_a_kernel_is_read() {
    let object = CodeObject::read(&object(&document())).unwrap();
    assert_eq!(object.target, "gfx906:xnack-");
    let kernel = object.kernel("a_kernel_with_a_name_of_more_than_31_bytes").unwrap();
    let expected = KernelMetadata {
        name: "a_kernel_with_a_name_of_more_than_31_bytes".to_owned(),
        vector_registers: 128,
        accumulation_registers: 0,
        scalar_registers: 30,
        vector_spills: 3,
        scalar_spills: 2,
        shared_bytes: 0x1020,
        private_bytes: 0,
        argument_bytes: Some(12),
        max_threads: 256,
        wave: 64,
    };
    assert_eq!(*kernel, expected);
    let resources = KernelResources::from(kernel);
    assert_eq!((resources.registers, resources.shared_bytes, resources.local_bytes), (128, 0x1020, 0));
    assert!(object.kernel("another").is_none());
}

#[test]
fn what_is_no_code_object_is_told() {
    let text = |image: &[u8]| CodeObject::read(image).unwrap_err().to_string();
    assert!(text(b"short").contains("shorter than an ELF header"));
    assert!(text(&[b'x'; 100]).contains("no ELF file"));
    assert!(text(b"__CLANG_OFFLOAD_BUNDLE__ and more").contains("bundle"));
    let mut host = object(&document());
    host[18] = 62;
    assert!(text(&host).contains("machine 62"));
    let mut bare = object(&document());
    bare[56] = 0;
    assert!(text(&bare).contains("no note"));
}

#[test]
fn damage_is_told_with_its_place() {
    assert!(metadata_error(&[0xc0]).contains("tag 0xc0 at byte 0, where a map"));
    assert!(metadata_error(&[]).contains("the metadata's end lies outside"));
    assert!(metadata_error(&map(&[("amdhsa.target", vec![0xa1, 0xff])])).contains("no UTF-8"));
    // A map that claims four billion pairs ends where the document ends.
    assert!(metadata_error(&[0xdf, 0xff, 0xff, 0xff, 0xff]).contains("outside"));
    assert!(metadata_error(&map(&[("deep", [vec![0x91; 100], vec![0]].concat())])).contains("16 containers"));
    let large = map(&[("amdhsa.kernels", array(&[map(&[(".vgpr_count", vec![0xcf, 1, 0, 0, 0, 0, 0, 0, 0])])]))]);
    assert!(metadata_error(&large).contains("too large"));
}

proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic_or_hang(
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut image = object(&document());
        for (place, value) in places {
            let place = place.index(image.len());
            image[place] = value;
        }
        let _ = CodeObject::read(&image);
        image.truncate(length.index(image.len()));
        let _ = CodeObject::read(&image);
    }
}
