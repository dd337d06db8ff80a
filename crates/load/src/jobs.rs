//! Ids of the jobs of a run. Inside the run, jobs are numbered from 0.

use std::collections::HashMap;

/// Maps job numbers to the hub's job ids and back.
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
