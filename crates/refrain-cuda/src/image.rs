//! Checks device code before the driver sees it: the driver is given no length, so a file that was cut short would make
//! it read past the end.

/// Machine number of NVIDIA's GPUs in ELF headers.
const ELF_CUDA: u64 = 190;
/// Type of ELF sections that have a size and no bytes in the file.
const ELF_NO_BITS: u64 = 8;
/// First word of several architectures' code in one file, as nvcc makes it.
const FATBIN: u64 = 0xba55_ed50;

/// Whether an image is whole, as far as its headers tell; an error says what is wrong with it.
pub(crate) fn check(image: &[u8]) -> Result<(), String> {
    if image.starts_with(b"\x7fELF") {
        check_elf(image)
    } else if number(image, 0, 4) == Some(FATBIN) {
        check_fatbin(image)
    } else if std::str::from_utf8(image).is_ok_and(|text| text.contains(".version") && !text.contains('\0')) {
        Ok(())
    } else {
        Err(format!("{} bytes that are neither device code (ELF, fatbin) nor PTX", image.len()))
    }
}

/// Header of 64 bytes, then sections anywhere (System V ABI, "ELF-64 object file format").
fn check_elf(image: &[u8]) -> Result<(), String> {
    let cut = |what: &str| format!("the image ends before its {what}: {} bytes are not all of it", image.len());
    let field = |at: usize, bytes: usize| number(image, at, bytes).ok_or_else(|| cut("header"));
    if (field(4, 1)?, field(5, 1)?, field(18, 2)?) != (2, 1, ELF_CUDA) {
        return Err("an ELF file, but not of code for an NVIDIA GPU".to_owned());
    }
    let tables = [("program headers", 32, 54, 56), ("section headers", 40, 58, 60)];
    for (name, offset, size, count) in tables {
        let length = field(size, 2)? * field(count, 2)?;
        if !within(image, field(offset, 8)?, length) {
            return Err(cut(name));
        }
    }
    let (start, size, count) = (field(40, 8)?, field(58, 2)?, field(60, 2)?);
    for section in 0..count {
        let header = usize::try_from(start + section * size).unwrap_or(usize::MAX);
        let part = |at: usize, bytes: usize| number(image, header.saturating_add(at), bytes);
        let whole = match (part(4, 4), part(24, 8), part(32, 8)) {
            (Some(ELF_NO_BITS), ..) => true,
            (_, Some(offset), Some(length)) => within(image, offset, length),
            _ => false,
        };
        if !whole {
            return Err(cut("sections"));
        }
    }
    Ok(())
}

/// Magic word, version, length of this header in 2 bytes, length of what follows in 8.
fn check_fatbin(image: &[u8]) -> Result<(), String> {
    match (number(image, 6, 2), number(image, 8, 8)) {
        (Some(header), Some(length)) if within(image, header, length) => Ok(()),
        _ => Err(format!("a fatbin that was cut short: {} bytes are not all of it", image.len())),
    }
}

fn within(image: &[u8], offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= image.len() as u64)
}

/// A little-endian number of up to 8 bytes.
fn number(image: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = image.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one section of 16 bytes behind it, then two section headers.
    fn elf() -> Vec<u8> {
        let mut image = vec![0; 64 + 16 + 2 * 64];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 190;
        image[40] = 80; // section headers
        image[54] = 56;
        image[58] = 64;
        image[60] = 2;
        let section = 80 + 64;
        image[section + 4] = 1;
        image[section + 24] = 64;
        image[section + 32] = 16;
        image
    }

    #[test]
    fn whole_images_pass() {
        check(&elf()).unwrap();
        check(b".version 8.0\n.target sm_80\n").unwrap();
        let mut fatbin = 0xba55_ed50_u32.to_le_bytes().to_vec();
        fatbin.extend([1, 0, 16, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9]);
        check(&fatbin).unwrap();
        assert!(check(&fatbin[..19]).unwrap_err().contains("cut short"));
    }

    #[test]
    fn every_shorter_image_is_refused() {
        let image = elf();
        for length in 0..image.len() {
            assert!(check(&image[..length]).is_err(), "{length} of {} bytes", image.len());
        }
    }

    #[test]
    fn sections_outside_the_image_are_refused() {
        let mut image = elf();
        image[80 + 64 + 33] = 1; // 272 bytes
        assert!(check(&image).unwrap_err().contains("sections"));
        image[80 + 64 + 24..80 + 64 + 40].fill(0xff);
        assert!(check(&image).is_err());
        image = elf();
        image[40..48].fill(0xff);
        assert!(check(&image).is_err());
    }

    #[test]
    fn code_from_the_compiler_is_whole_and_no_part_of_it_is() {
        let Some(folder) = refrain_testkit::nvrtc_dir() else { return };
        let compiler = crate::NvrtcCompiler::load(&crate::CudaOptions { library_dirs: vec![folder] }).unwrap();
        let source = refrain_device::KernelSource {
            name: "empty.cu".to_owned(),
            text: "extern \"C\" __global__ void empty() {}".to_owned(),
            headers: Vec::new(),
            defines: Vec::new(),
        };
        let image = refrain_device::Compiler::compile(&compiler, &source, "sm_80").unwrap().image;
        check(&image).unwrap();
        for length in [image.len() / 4, image.len() / 2, image.len() * 3 / 4, image.len() - 1] {
            assert!(check(&image[..length]).is_err(), "{length} of {} bytes", image.len());
        }
    }

    #[test]
    fn other_files_are_refused() {
        let mut image = elf();
        image[18] = 62; // x86-64
        assert!(check(&image).unwrap_err().contains("not of code for an NVIDIA GPU"));
        assert!(check(b"").is_err() && check(b"\0\0\0").is_err() && check(b"hello").is_err());
    }
}
