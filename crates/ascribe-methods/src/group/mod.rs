//! Groups of examples as players: what a dataset is worth as a whole, and how sure one may be of its share.
//!
//! Here lives: tables of predicted utilities of all subsets and their calibrated sum (`utility`), second-order group influence
//! (`quadratic`, `removal`), what a sum of scores leaves out (`additivity`), the split-proof group value (`fgsv`), and intervals of
//! shares with their verdict (`intervals`). Here never lives: measured truth and exact values from it (eval), files.
//!
//! A subset is a bit mask over datasets, tables are `[2^K, Q]`, scores `[Q, K]`, positive = proponent.

pub mod additivity;
pub mod fgsv;
pub mod intervals;
pub mod quadratic;
pub mod removal;
pub mod utility;

/// Most datasets of a table of all subsets.
pub const MAX_DATASETS: usize = 12;
