//! The codes: what a number becomes, how codes are packed. Rows and groups live one floor up.

/// How one number is kept; the table is in the module's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// 255 even steps up to the largest number of the group.
    Int8,
    /// 16 levels.
    Four,
    /// 4 levels.
    Two,
    /// −1, 0, 1; five to a byte.
    Ternary,
    /// The sign; the scale is the mean of `|x|`.
    Sign,
}

/// Positive halves of the symmetric level tables (Max 1960), ascending; the ternary one has 0 beside it.
const FOUR: [f32; 8] = [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0691, 2.7326];
const TWO: [f32; 2] = [0.4528, 1.5104];
const TERNARY: f32 = 1.2240;
const SIGN: f32 = 0.7979;

/// Rounds of choosing levels and refitting the scale. The error falls in every round and settles after two or three.
const ROUNDS: usize = 4;

/// What encoding a group found.
pub(super) struct Encoded {
    pub scale: f32,
    /// `‖x − x̂‖²`.
    pub lost: f64,
}

impl Code {
    /// All codes, most bits first.
    pub const ALL: [Self; 5] = [Self::Int8, Self::Four, Self::Two, Self::Ternary, Self::Sign];

    /// Name in files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Four => "four_bit",
            Self::Two => "two_bit",
            Self::Ternary => "ternary",
            Self::Sign => "sign",
        }
    }

    /// The code of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// Bytes of `n` codes, without their scale.
    pub const fn len_bytes(self, n: usize) -> usize {
        n.div_ceil(self.per_byte())
    }

    const fn per_byte(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Four => 2,
            Self::Two => 4,
            Self::Ternary => 5,
            Self::Sign => 8,
        }
    }

    /// Codes of one number: a byte holds `per_byte` digits in this base, the first number in the lowest.
    const fn base(self) -> u32 {
        match self {
            Self::Int8 => 256,
            Self::Four => 16,
            Self::Two => 4,
            Self::Ternary => 3,
            Self::Sign => 2,
        }
    }

    /// The level of a digit, in units of the scale.
    fn level(self, digit: u8) -> f32 {
        let signed = |half: &[f32]| {
            let (n, d) = (half.len(), usize::from(digit) % (2 * half.len()));
            if d < n { -half[n - 1 - d] } else { half[d - n] }
        };
        match self {
            Self::Int8 => f32::from(digit as i8),
            Self::Four => signed(&FOUR),
            Self::Two => signed(&TWO),
            Self::Ternary => TERNARY * (f32::from(digit % 3) - 1.0),
            Self::Sign => signed(&[SIGN]),
        }
    }

    /// The digit whose level is nearest to `x`, a number in units of the scale; of two equally near the smaller one in size.
    fn digit(self, x: f32) -> u8 {
        let halves = |half: &[f32]| {
            let above = |pair: &&[f32]| x.abs() > 0.5 * (pair[0] + pair[1]);
            let index = half.windows(2).take_while(above).count();
            (if x < 0.0 { half.len() - 1 - index } else { half.len() + index }) as u8
        };
        match self {
            Self::Int8 => (x.round().clamp(-127.0, 127.0) as i8) as u8,
            Self::Four => halves(&FOUR),
            Self::Two => halves(&TWO),
            Self::Ternary => 1 + u8::from(x > 0.5 * TERNARY) - u8::from(x < -0.5 * TERNARY),
            Self::Sign => u8::from(x >= 0.0),
        }
    }

    /// Packs a group of finite numbers into zeroed or old `bytes`.
    pub(super) fn encode(self, group: &[f32], bytes: &mut [u8]) -> Encoded {
        let squared: f64 = group.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = match self {
            _ if squared == 0.0 => 0.0,
            Self::Int8 => group.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0,
            _ => self.fitted_scale(group, squared),
        };
        let inverse = if scale > 0.0 { 1.0 / f64::from(scale) } else { 0.0 };
        let mut lost = 0.0;
        for (byte, numbers) in bytes.iter_mut().zip(group.chunks(self.per_byte())) {
            let mut digits = 0u32;
            for &x in numbers.iter().rev() {
                let digit = self.digit((f64::from(x) * inverse) as f32);
                let rest = f64::from(x) - f64::from(scale * self.level(digit));
                lost += rest * rest;
                digits = digits * self.base() + u32::from(digit);
            }
            *byte = digits as u8;
        }
        Encoded { scale, lost }
    }

    /// The scale with the least squared error for the levels that it leads to: starts at the root mean square (a normal group
    /// needs nothing more), then levels and scale take turns. `‖x − s·c‖²` is least at `s = ⟨x, c⟩/⟨c, c⟩`, where it is
    /// `‖x‖² − ⟨x, c⟩²/⟨c, c⟩`.
    fn fitted_scale(self, group: &[f32], squared: f64) -> f32 {
        let mut scale = (squared / group.len() as f64).sqrt();
        let mut best = (f64::INFINITY, scale);
        for _ in 0..ROUNDS {
            let (mut product, mut levels) = (0.0f64, 0.0f64);
            for &x in group {
                let level = f64::from(self.level(self.digit((f64::from(x) / scale) as f32)));
                product += f64::from(x) * level;
                levels += level * level;
            }
            if levels == 0.0 {
                break;
            }
            scale = product / levels;
            let lost = squared - product * scale;
            if lost >= best.0 {
                break;
            }
            best = (lost, scale);
        }
        best.1.min(f64::from(f32::MAX)) as f32
    }

    /// Unpacks a group.
    pub(super) fn decode(self, scale: f32, bytes: &[u8], group: &mut [f32]) {
        for (&byte, numbers) in bytes.iter().zip(group.chunks_mut(self.per_byte())) {
            let mut digits = u32::from(byte);
            for x in numbers {
                *x = scale * self.level((digits % self.base()) as u8);
                digits /= self.base();
            }
        }
    }

    /// The first byte that no encoder writes: too large a digit, or digits behind the last number.
    pub(super) fn first_bad(self, n: usize, bytes: &[u8]) -> Option<usize> {
        bytes.iter().enumerate().position(|(i, &byte)| {
            let numbers = self.per_byte().min(n - i * self.per_byte());
            let end = u64::from(self.base()).pow(numbers as u32);
            u64::from(byte) >= end || (self == Self::Int8 && byte == 128)
        })
    }
}
