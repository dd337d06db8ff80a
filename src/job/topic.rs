use super::JobId;

/// The subject of a subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One job.
    Job(JobId),
    /// All jobs of an owner, including jobs that are created later.
    Owner(String),
}
