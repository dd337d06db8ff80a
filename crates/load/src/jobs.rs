//! The jobs of a run: registered for it, updated in turn, and ended by it.
//!
//! Invariant: a job is known by its number, and its number by the hub's id for it.

use std::collections::HashMap;

/// The ids that the hub gave, by number and back.
pub(super) struct JobIndex {
    ids: Vec<Box<str>>,
    numbers: HashMap<Box<str>, u32>,
}

impl JobIndex {
    pub fn new(ids: Vec<String>) -> Self {
        let ids: Vec<Box<str>> = ids.into_iter().map(String::into_boxed_str).collect();
        let numbers = ids.iter().cloned().zip(0..).collect();
        Self { ids, numbers }
    }

    pub fn count(&self) -> u32 {
        self.ids.len() as u32
    }

    pub fn id(&self, number: u32) -> &str {
        &self.ids[number as usize]
    }

    pub fn number(&self, id: &str) -> Option<u32> {
        self.numbers.get(id).copied()
    }
}
