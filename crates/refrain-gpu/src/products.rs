//! Whose kernels compute products of many rows: the vendor's library's, or our own.

use refrain_device::{DeviceError, Runtime};
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Whose products may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProductsChoice {
    /// The library's where there is one that can compute all of them, else our own.
    #[default]
    Auto,
    /// Our own; the library is not even loaded.
    Own,
    /// The library's; that it can't be used is an error.
    Library,
}

/// Whose products are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Products {
    /// Those of the library of this name and version.
    Library(String),
    /// Our own, and why.
    Own(String),
}

impl Display for Products {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Products::Library(name) => f.write_str(name),
            Products::Own(why) => write!(f, "own kernels: {why}"),
        }
    }
}

impl FromStr for ProductsChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<ProductsChoice, String> {
        match text {
            "auto" => Ok(ProductsChoice::Auto),
            "own" => Ok(ProductsChoice::Own),
            "library" => Ok(ProductsChoice::Library),
            _ => Err("must be auto, own or library".to_owned()),
        }
    }
}

impl ProductsChoice {
    /// Whose products are used on a device, as far as that is known before any has run.
    ///
    /// # Errors
    /// [`DeviceError::NoProducts`] where the library was asked for and there is none.
    pub fn of(self, runtime: &dyn Runtime) -> Result<Products, DeviceError> {
        if self == ProductsChoice::Own {
            return Ok(Products::Own("the library was not asked for".to_owned()));
        }
        match runtime.gemm() {
            Ok(library) => Ok(Products::Library(library.describe())),
            Err(why) if self == ProductsChoice::Library => Err(DeviceError::NoProducts { why: why.to_owned() }),
            Err(why) => Ok(Products::Own(why.to_owned())),
        }
    }

    /// Whose products are used once one of the library's has failed.
    ///
    /// # Errors
    /// The failure, where the device is lost by it; [`DeviceError::NoProducts`] where the library was asked for.
    pub(crate) fn without(self, library: &str, failure: DeviceError) -> Result<Products, DeviceError> {
        let why = format!("a product of {library} failed: {failure}");
        match self {
            _ if failure.is_fatal() => Err(failure),
            ProductsChoice::Library => Err(DeviceError::NoProducts { why }),
            ProductsChoice::Auto | ProductsChoice::Own => {
                tracing::warn!("all matrix products are computed by own kernels, which may be slower: {why}");
                Ok(Products::Own(why))
            }
        }
    }
}

impl Products {
    /// Whether they are the library's.
    pub fn are_the_library_s(&self) -> bool {
        matches!(self, Products::Library(_))
    }
}
