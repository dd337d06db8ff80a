//! HTTP resources, one file per resource.

pub mod deliveries;
pub mod demo;
pub mod destinations;
pub mod events;
pub mod health;
pub mod jobs;
pub mod outputs;
pub mod providers;
pub mod tokens;
pub mod videos;
pub mod webhooks;
pub mod workers;
