//! Where the code of a kernel comes from: packs, then the disk cache, then the compiler.

use super::cache::{Cached, KernelCache};
use super::pack::Pack;
use super::private::CacheError;
use super::{CompileUnit, KernelOptions, image_key, source_key};
use refrain_device::{CompiledKernel, Compiler, DeviceError, ModuleId, Runtime, RuntimeInfo};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a kernel's code was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a pack.
    Pack,
    /// In the disk cache.
    Cache,
    /// Nowhere: it was compiled.
    Compiler,
}

pub(super) struct Images {
    packs: Vec<Pack>,
    cache: Option<KernelCache>,
    /// Where packs were looked for, for the error that says that there is none.
    looked_for: Vec<PathBuf>,
    notes: Mutex<Vec<String>>,
    /// Whether it was said that the cache takes nothing: what the system says differs from file to file.
    put_failed: AtomicBool,
    /// Whether the cache knows by which compiler its entries are found.
    compiler_noted: AtomicBool,
}

impl Images {
    pub(super) fn new(arch: &str, options: &KernelOptions) -> Images {
        let mut images = Images {
            packs: Vec::new(),
            cache: None,
            looked_for: Vec::new(),
            notes: Mutex::default(),
            put_failed: AtomicBool::new(false),
            compiler_noted: AtomicBool::new(false),
        };
        let folders = if options.pack_dirs.is_empty() { &options.usual_pack_dirs } else { &options.pack_dirs };
        for arch in compatible_architectures(arch) {
            for folder in folders {
                images.looked_for.push(folder.join(Pack::file_name(&arch)));
                match Pack::open(folder, &arch) {
                    Ok(pack) => images.packs.extend(pack),
                    Err(error) => images.note(format!("a pack of kernels is not used: {error}")),
                }
            }
        }
        if !options.pack_dirs.is_empty() && !images.looked_for.iter().any(|pack| pack.exists()) {
            let folders: Vec<String> = options.pack_dirs.iter().map(|folder| folder.display().to_string()).collect();
            images.note(format!("there is no pack of kernels for {arch} in {}", folders.join(", ")));
        }
        if let Some(folder) = &options.cache_dir {
            match KernelCache::open(folder, options.cache_bytes) {
                Ok(cache) => images.cache = Some(cache),
                Err(error) => images.note_unused_cache(&error),
            }
        }
        images
    }

    fn note_unused_cache(&self, error: &CacheError) {
        self.note(format!("compiled kernels are not kept on disk: {error}"));
    }

    /// Notes the compiler whose entries are in the cache, at the first of them.
    fn note_compiler(&self, cache: &KernelCache, arch: &str, described: &str) -> io::Result<()> {
        if self.compiler_noted.swap(true, Ordering::Relaxed) { Ok(()) } else { cache.note_compiler(arch, described) }
    }

    /// Says something that the user should know, once.
    fn note(&self, what: String) {
        let mut notes = self.notes.lock().expect("no panic while it is held");
        if !notes.contains(&what) {
            tracing::warn!("{what}");
            notes.push(what);
        }
    }

    /// What was noted since the last call.
    pub(super) fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().expect("no panic while it is held"))
    }

    /// Loads the code of a unit from the first place that has it.
    pub(super) fn load(&self, runtime: &dyn Runtime, unit: &CompileUnit) -> Result<(ModuleId, Origin), DeviceError> {
        let source = unit.source();
        let key = source_key(&source);
        for pack in &self.packs {
            match pack.image(&key) {
                Ok(None) => {}
                Ok(Some(image)) => match self.load_stored(runtime, &image, unit, &pack.path().display().to_string())? {
                    Some(module) => return Ok((module, Origin::Pack)),
                    None => continue,
                },
                Err(error) => self.note(format!("{unit} is not taken from a pack: {error}")),
            }
        }
        let info = runtime.info();
        let compiler = runtime.compiler();
        let described = match &compiler {
            Ok(compiler) => Some(compiler.describe()),
            Err(_) => self.cache.as_ref().and_then(|cache| cache.compiler(&info.arch)),
        };
        let key = described.as_ref().map(|described| image_key(key, described, &info.arch, &info.driver));
        if let (Some(cache), Some(key)) = (&self.cache, &key) {
            match cache.get(key) {
                Cached::Found(compiled) => {
                    let place = format!("the cache {}", cache.folder().display());
                    match self.load_stored(runtime, &compiled.image, unit, &place)? {
                        Some(module) => {
                            match (&compiler, &described) {
                                (Err(error), Some(described)) => {
                                    self.note(format!("kernels are those that {described} compiled before: {error}"));
                                }
                                // What is found by this compiler's name is found again when it is gone.
                                // A cache that can be read only serves as well without the note.
                                (Ok(_), Some(described)) => drop(self.note_compiler(cache, &info.arch, described)),
                                _ => {}
                            }
                            return Ok((module, Origin::Cache));
                        }
                        None => {
                            // The note says that it can't be loaded; it is overwritten if it can't be removed.
                            let _ = cache.remove(key);
                        }
                    }
                }
                Cached::Missing => {}
                Cached::Damaged(why) => self.note(format!("the cached code of {unit} is damaged: {why}")),
            }
        }
        let compiler = compiler.map_err(|error| self.no_code(unit, info, &error))?;
        let compiled = compile(compiler, unit, &info.arch)?;
        let module = runtime.load_module(&compiled.image)?;
        if let (Some(cache), Some(key), Some(described)) = (&self.cache, &key, &described)
            && let Err(error) =
                cache.put(key, &compiled).and_then(|()| self.note_compiler(cache, &info.arch, described))
            && !self.put_failed.swap(true, Ordering::Relaxed)
        {
            let folder = cache.folder().display();
            self.note(format!("{unit} is not kept on disk, and others may not be either: {folder}: {error}"));
        }
        Ok((module, Origin::Compiler))
    }

    /// Loads an image that was made earlier. `None` when the driver does not take it: then another one may do.
    fn load_stored(
        &self,
        runtime: &dyn Runtime,
        image: &[u8],
        unit: &CompileUnit,
        place: &str,
    ) -> Result<Option<ModuleId>, DeviceError> {
        match runtime.load_module(image) {
            Ok(module) => Ok(Some(module)),
            Err(error @ DeviceError::Driver { .. }) => {
                self.note(format!("the code of {unit} in {place} can't be loaded: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// There is neither a compiler nor a pack with this kernel.
    fn no_code(&self, unit: &CompileUnit, info: &RuntimeInfo, compiler: &DeviceError) -> DeviceError {
        let RuntimeInfo { arch, processors, .. } = info;
        let packs = match (self.packs.as_slice(), self.looked_for.as_slice()) {
            ([], []) => "no folder with packs of compiled kernels is given".to_owned(),
            ([], looked_for) => {
                let looked_for: Vec<String> = looked_for.iter().map(|path| path.display().to_string()).collect();
                format!("there is no pack of compiled kernels that can be used ({})", looked_for.join(", "))
            }
            (packs, _) => {
                let pack = |pack: &Pack| {
                    format!("{} has {} kernels by {}", pack.path().display(), pack.len(), pack.compiler())
                };
                let packs: Vec<String> = packs.iter().map(pack).collect();
                format!(
                    "no pack has it: each is for one version, some models and some numbers of processors, of which this \
                     device has {processors} ({})",
                    packs.join(", ")
                )
            }
        };
        // Nobody makes packs for simulated devices.
        let help = match arch.starts_with("sim") {
            true => "install the compiler".to_owned(),
            false => format!(
                "install the compiler, or get a pack of this version: `cargo xtask kernels --arch {arch} --processors \
                 {processors}` makes one on any machine that has the compiler"
            ),
        };
        let why = format!("no compiler can be used ({compiler}), and {packs}{}; {help}", self.noted());
        DeviceError::NoCode { kernel: unit.to_string(), arch: arch.clone(), why }
    }

    /// What was noted, as the end of a sentence: a few of many notes are enough, for they are much alike.
    fn noted(&self) -> String {
        const SAID: usize = 3;
        let notes = self.notes.lock().expect("no panic while it is held");
        let said: String = notes.iter().take(SAID).map(|note| format!("; {note}")).collect();
        match notes.len().saturating_sub(SAID) {
            0 => said,
            more => format!("{said}; and {more} more"),
        }
    }
}

/// Compiles a unit; an error names its constants.
///
/// # Errors
/// [`DeviceError::Compile`].
pub fn compile(compiler: &dyn Compiler, unit: &CompileUnit, arch: &str) -> Result<CompiledKernel, DeviceError> {
    compiler.compile(&unit.source(), arch).map_err(|error| match error {
        DeviceError::Compile { arch, compiler, log, .. } => {
            DeviceError::Compile { kernel: unit.to_string(), arch, compiler, log }
        }
        other => other,
    })
}

/// The architectures whose code runs on `arch`, itself first. Code for `sm_80` runs on `sm_86`, too: the same first
/// number and a second one that is not higher (CUDA C++ Programming Guide, binary compatibility). Code with a letter
/// (`sm_90a`) runs on that very architecture only, as does AMD's.
fn compatible_architectures(arch: &str) -> Vec<String> {
    let mut found = vec![arch.to_owned()];
    let number = arch.strip_prefix("sm_").map(|number| number.trim_end_matches(char::is_alphabetic));
    if let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) {
        let plain = (number / 10 * 10..=number).rev().map(|number| format!("sm_{number}"));
        found.extend(plain.filter(|plain| plain != arch));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::compatible_architectures;

    #[test]
    fn older_code_of_the_same_generation_runs() {
        assert_eq!(compatible_architectures("sm_86")[..3], ["sm_86", "sm_85", "sm_84"]);
        assert_eq!(compatible_architectures("sm_86").last().unwrap(), "sm_80");
        assert_eq!(compatible_architectures("sm_90a"), ["sm_90a", "sm_90"]);
        assert_eq!(compatible_architectures("sm_103a")[..2], ["sm_103a", "sm_103"]);
        assert_eq!(compatible_architectures("sm_103a").last().unwrap(), "sm_100");
        assert_eq!(compatible_architectures("gfx906"), ["gfx906"]);
        assert_eq!(compatible_architectures("sim32"), ["sim32"]);
    }
}
