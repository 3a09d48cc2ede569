//! One body, three instruction sets: the macro that compiles an elementwise kernel for AVX-512, AVX2 and any processor.
//!
//! The body is plain Rust; only the width of the registers that the compiler may use differs. Rust never contracts
//! `a * b + c` into one rounding and never reorders float additions, and every kernel sums in [`LANES`] fixed lanes, so
//! the three twins give the same bits (a test compares them). Benefit, measured on one Zen 5 core: cross-entropy and its
//! gradient over `[128, 2048]` logits take 79 µs with AVX-512, 140 µs with AVX2 and 270 µs portably. No arithmetic lives
//! here.
#![allow(unsafe_code)] // calling a function compiled for more features than the crate; `level` has checked them

use std::sync::atomic::{AtomicU8, Ordering};

/// Partial sums of every reduction, whatever the register width: part of the definition of the results.
pub const LANES: usize = 16;

/// The instruction set that kernels run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// What every processor of the target has.
    Portable = 1,
    /// AVX2 (x86-64).
    V3 = 2,
    /// AVX-512 F, BW, DQ and VL (x86-64).
    V4 = 3,
}

/// The best level of this processor; detected once.
pub fn level() -> Level {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let found = detect();
            KNOWN.store(found as u8, Ordering::Relaxed);
            found
        }
        3 => Level::V4,
        2 => Level::V3,
        _ => Level::Portable,
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let v3 = is_x86_feature_detected!("avx2");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v4, v3) {
        (true, _) => Level::V4,
        (false, true) => Level::V3,
        (false, false) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines `pub fn name(args)` that runs its body on the best level, and `name_at(level, args)` for tests of the twins.
macro_rules! kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident / $at:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[inline]
        #[allow(clippy::too_many_arguments)] // slices and their sizes; a struct would hide which is which
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            $at($crate::elementwise::dispatch::level(), $($arg),*)
        }

        #[allow(unsafe_code, clippy::too_many_arguments)]
        fn $at(level: $crate::elementwise::dispatch::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn v3($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn v4($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            match level {
                // SAFETY: `level()` returns V3 or V4 only after the processor has said that it has these features; the
                // bodies are safe code.
                #[cfg(target_arch = "x86_64")]
                $crate::elementwise::dispatch::Level::V4 => unsafe { v4($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::elementwise::dispatch::Level::V3 => unsafe { v3($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    };
}

pub(crate) use kernel;

/// Adds the lanes in a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest lane; NaN in any lane is not promised to survive (callers sum afterwards, which keeps it).
#[inline(always)]
pub(crate) fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}
