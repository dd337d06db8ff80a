//! Mails about jobs, sent to real mail servers.

mod channel;
mod commands;
mod mails;
mod online_check;
mod servers;
