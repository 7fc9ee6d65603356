//! What one run of a compiler makes, and the keys by which its result is found again.

use crate::kernel::Kernel;
use crate::sources::{HEADERS, SOURCES, source};
use refrain_device::KernelSource;
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

/// A source file with its constants. Kernels that differ in their entry only share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CompileUnit {
    /// File below `kernels/`; of a generated kernel a name for messages.
    pub source: &'static str,
    /// The text of a generated kernel.
    pub text: Option<Arc<str>>,
    /// Constants by name, sorted.
    pub defines: Vec<(&'static str, String)>,
}

impl From<&Kernel> for CompileUnit {
    fn from(kernel: &Kernel) -> CompileUnit {
        CompileUnit { source: kernel.source, text: kernel.text.clone(), defines: kernel.defines.clone() }
    }
}

impl CompileUnit {
    /// What the compiler is given.
    pub fn source(&self) -> KernelSource {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        KernelSource {
            name: self.source.to_owned(),
            text: self.text.as_deref().unwrap_or_else(|| source(self.source)).to_owned(),
            headers: HEADERS.iter().map(owned).collect(),
            defines: self.defines.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        }
    }
}

impl Display for CompileUnit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.source)?;
        if let Some(what) = self.text.as_deref().and_then(|text| text.lines().next()) {
            write!(f, " ({})", what.trim_start_matches("// "))?;
        }
        for (index, (name, value)) in self.defines.iter().enumerate() {
            write!(f, "{} {name}={value}", if index == 0 { " with" } else { "," })?;
        }
        Ok(())
    }
}

/// The names of all files with kernels in them.
pub fn source_files() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(name, _)| *name)
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Of some texts, each with its length before it, so that no two lists give the same bytes.
    pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Digest {
        let mut hash = Sha256::new();
        for text in texts {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        Digest(hash.finalize().into())
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// The key of a source, whoever compiles it: packs are indexed by it. The file's name does not count.
pub fn source_key(source: &KernelSource) -> Digest {
    let pairs = |pairs: &[(String, String)]| pairs.len().to_string();
    let (headers, defines) = (pairs(&source.headers), pairs(&source.defines));
    let lists = source.headers.iter().chain(&source.defines).flat_map(|(name, text)| [name.as_str(), text.as_str()]);
    Digest::of_texts(["kernel source", &source.text, &headers, &defines].into_iter().chain(lists))
}

/// The key of what a compiler makes of a source: the disk cache is indexed by it. An image for another driver counts
/// as another one. Most drivers would take it, but a driver's update is rare and compiling again is cheap.
pub fn image_key(source: Digest, compiler: &str, arch: &str, driver: &str) -> Digest {
    Digest::of_texts(["kernel image", &source.to_string(), compiler, arch, driver])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> KernelSource {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        KernelSource {
            name: "add.cu".to_owned(),
            text: "text".to_owned(),
            headers: vec![pair("kx.h", "header")],
            defines: vec![pair("K", "64"), pair("THREADS", "256")],
        }
    }

    #[test]
    fn the_key_of_a_source_depends_on_all_that_the_compiler_sees() {
        let key = source_key(&some());
        assert_eq!(key, source_key(&KernelSource { name: "renamed.cu".to_owned(), ..some() }));
        let changes: [&dyn Fn(&mut KernelSource); 7] = [
            &|source| source.text.push(' '),
            &|source| source.headers[0].1.push(' '),
            &|source| source.headers[0].0.push('x'),
            &|source| source.defines[0].1.push('0'),
            &|source| source.defines[0].0.push('2'),
            &|source| drop(source.defines.pop()),
            // A define that becomes a header: the same texts in the same order.
            &|source| {
                let moved = source.defines.remove(0);
                source.headers.push(moved);
            },
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = some();
            change(&mut changed);
            assert_ne!(source_key(&changed), key, "change {index}");
        }
    }

    #[test]
    fn the_key_of_an_image_depends_on_compiler_architecture_and_driver() {
        let source = source_key(&some());
        let key = image_key(source, "nvrtc 13.0", "sm_90a", "580");
        assert_eq!(key, image_key(source, "nvrtc 13.0", "sm_90a", "580"));
        assert_ne!(key, image_key(Digest::of(b"other"), "nvrtc 13.0", "sm_90a", "580"));
        assert_ne!(key, image_key(source, "nvrtc 13.1", "sm_90a", "580"));
        assert_ne!(key, image_key(source, "nvrtc 13.0", "sm_80", "580"));
        assert_ne!(key, image_key(source, "nvrtc 13.0", "sm_90a", "570"));
        // Texts are not just put one behind the other.
        assert_ne!(image_key(source, "a", "bc", "d"), image_key(source, "ab", "c", "d"));
    }

    #[test]
    fn a_unit_names_its_constants() {
        let defines = vec![("K", "64".to_owned()), ("THREADS", "256".to_owned())];
        assert_eq!(
            CompileUnit { source: "gemv.cu", text: None, defines }.to_string(),
            "gemv.cu with K=64, THREADS=256"
        );
        assert_eq!(CompileUnit { source: "gemv.cu", text: None, defines: vec![] }.to_string(), "gemv.cu");
        let text = Some("// out = a + b\n#include \"kx.h\"\n".into());
        let generated = CompileUnit { source: "generated.cu", text, defines: vec![] };
        assert_eq!(generated.to_string(), "generated.cu (out = a + b)");
        assert_eq!(generated.source().text, "// out = a + b\n#include \"kx.h\"\n");
    }
}
