//! Which kernels run: chosen once per process from what the processor says.

use std::sync::OnceLock;

/// The number type that a product multiplies in; sums are f32 in both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Precision {
    /// f32 inputs, exact but for the rounding of f32 sums.
    F32,
    /// Both inputs rounded to bf16 (8 bits of mantissa), products summed in f32.
    Bf16,
}

/// A family of kernels; a packed matrix remembers the one it was packed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route {
    /// Plain loops with `f32::mul_add`.
    Portable,
    /// 256-bit FMA.
    Avx2,
    /// 512-bit FMA.
    Avx512,
    /// `vdpbf16ps` over pairs of bf16.
    Avx512Bf16,
    /// AMX tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// The loops of `Amx` over tiles in plain arithmetic.
    #[cfg(all(test, target_arch = "x86_64"))]
    Emulated,
}

impl Route {
    /// True if the operands are pairs of bf16, not single f32.
    pub const fn pairs(self) -> bool {
        match self {
            Self::Avx512Bf16 => true,
            _ => self.tiles(),
        }
    }

    /// True if the kernels read whole tiles: 16 rows and 16 steps at a time.
    pub const fn tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => true,
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Emulated => true,
            _ => false,
        }
    }

    /// True if this processor can run the route.
    pub fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
            // The instruction set has AMX's rounding of rows; the self-test runs once.
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                static WORKS: OnceLock<bool> = OnceLock::new();
                Self::Avx512Bf16.available() && *WORKS.get_or_init(|| super::amx::available() && super::amx::works())
            }
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Emulated => Self::Avx512Bf16.available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Portable => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "amx_bf16",
            #[cfg(all(test, target_arch = "x86_64"))]
            Self::Emulated => "emulated",
        }
    }

    /// The best route of this processor for `precision`.
    pub fn best(precision: Precision) -> Self {
        static F32: OnceLock<Route> = OnceLock::new();
        static BF16: OnceLock<Route> = OnceLock::new();
        let first = |routes: &[Self]| routes.iter().copied().find(|r| r.available()).unwrap_or(Self::Portable);
        match precision {
            Precision::F32 => *F32.get_or_init(|| first(&[Self::Avx512, Self::Avx2])),
            Precision::Bf16 => *BF16.get_or_init(|| {
                first(&[
                    #[cfg(target_arch = "x86_64")]
                    Self::Amx,
                    Self::Avx512Bf16,
                    Self::Avx512,
                    Self::Avx2,
                ])
            }),
        }
    }
}

/// True if bf16 operands are multiplied as they are, not widened first.
pub(crate) fn isa_takes_bf16() -> bool {
    Route::best(Precision::Bf16).pairs()
}

/// The kernels in use, such as `"f32 avx512, bf16 avx512_bf16"`: for a store or a run file to name. The f32 kernels give
/// the same bits whichever stands there; the bf16 kernels agree to rounding only.
pub fn isa() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        format!("f32 {}, bf16 {}", Route::best(Precision::F32).name(), Route::best(Precision::Bf16).name())
    })
}
