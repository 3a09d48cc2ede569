//! The bench: influence methods held against retraining, one setting at a time.
//!
//! A setting (`benches/settings/NAME/setting.toml`) says what is trained, on what, and which retrain banks are its truth.
//! Here lives: banks of any kind (`bank`), settings and their data (`setting`), how a bank's models are trained (`runners`),
//! classifiers and decoders as methods see them (`images`, `decoder`), models that are tuned (`tuned`), what methods work on (`lab`),
//! the methods with their settings (`methods`) and dampings chosen by evidence (`damping`), held against banks (`contest`, `run`),
//! against games of datasets (`datasets`) or known sources (`facts`), and what that shows (`gates`, `report`, `suite`, `board`).
//! Here never lives: the mathematics of methods and measures (methods, eval).

pub mod bank;
pub mod board;
pub mod contest;
pub mod damping;
pub mod datasets;
pub mod decoder;
pub mod facts;
pub mod gates;
pub mod images;
pub mod lab;
pub mod methods;
pub mod protocols;
pub mod report;
pub mod run;
pub mod runners;
pub mod setting;
pub mod suite;
pub mod tuned;
