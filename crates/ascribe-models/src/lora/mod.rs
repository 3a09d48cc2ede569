//! LoRA adapters in PEFT's layout: read, made anew, merged into a decoder, differentiated, written.
//!
//! Two questions can be asked of an adapted model. Over *merged* weights: its decoder is a decoder like any other. Over
//! *adapter* weights: the gradients of `A` and `B` alone. How an adapter is trained lives in `train`.

mod adapter;
mod config;
mod merged;

pub(crate) use adapter::Part;
pub use adapter::{ADAPTER_WEIGHTS_FILE, Adapter, AdapterSlot};
pub use config::{ADAPTER_CONFIG_FILE, LoraConfig, Targets};
pub use merged::AdaptedDecoder;
pub(crate) use merged::narrow;
