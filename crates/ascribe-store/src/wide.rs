//! One safe body, three instruction sets: what a store does to every number of a row, compiled for AVX-512, AVX2 and any
//! processor.
//!
//! The manner of `elementwise/dispatch.rs` in ascribe-linalg, which this crate does not stand on: whoever only reads bytes need
//! not build its solvers. Rust neither contracts `a * b + c` nor reorders float additions, and every sum here runs over fixed
//! lanes, so the twins give the same bits (a test compares them). Benefit: `benches/BARS.md`, the row of the store's writing.
#![allow(unsafe_code)] // calling a function compiled for more features than the crate; `level` has checked them

/// The instruction set that bodies run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// What every processor of the target has.
    Portable,
    /// AVX2 and FMA (x86-64).
    #[cfg(target_arch = "x86_64")]
    V3,
    /// AVX-512 F, BW, DQ and VL (x86-64).
    #[cfg(target_arch = "x86_64")]
    V4,
}

/// The best level of this processor. The standard library remembers what it found.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let is_v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if is_v4 { Level::V4 } else { Level::V3 };
    }
    Level::Portable
}

/// Defines `fn name(args)` that runs its body on the best level, and `name_at(level, args)` for tests of the twins. In the body `FMA` says
/// whether the level multiplies and adds in one operation; where products are exact, that changes no bit.
macro_rules! wide {
    ($(#[$doc:meta])* $vis:vis fn $name:ident / $at:ident ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[inline]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            $at($crate::wide::level(), $($arg),*)
        }

        #[allow(unsafe_code)]
        fn $at(level: $crate::wide::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn v3($($arg: $ty),*) $(-> $ret)? {
                portable::<true>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn v4($($arg: $ty),*) $(-> $ret)? {
                portable::<true>($($arg),*)
            }

            match level {
                // SAFETY: `level()` returns V3 or V4 only after the processor has said that it has these features; the
                // bodies are safe code.
                #[cfg(target_arch = "x86_64")]
                $crate::wide::Level::V4 => unsafe { v4($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::wide::Level::V3 => unsafe { v3($($arg),*) },
                $crate::wide::Level::Portable => portable::<false>($($arg),*),
            }
        }
    };
}

pub(crate) use wide;

/// `sum + x²` for an `x` of at most 26 bits, as every f32 is: its square is exact, and the sum is rounded once whatever `FMA` is.
#[inline(always)]
pub(crate) fn add_square<const FMA: bool>(sum: f64, x: f32) -> f64 {
    let x = f64::from(x);
    if FMA { x.mul_add(x, sum) } else { sum + x * x }
}

/// The levels of this processor, for tests of the twins.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    let all = [
        Level::Portable,
        #[cfg(target_arch = "x86_64")]
        Level::V3,
        #[cfg(target_arch = "x86_64")]
        Level::V4,
    ];
    all.into_iter().filter(|&other| other <= level()).collect()
}
