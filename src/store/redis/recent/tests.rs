use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::job::{InternalState, NewJob, Status};
use crate::time::Time;

fn new_job() -> Arc<Job> {
    let new = NewJob {
        owner: "ada".to_owned(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata: Map::new(),
        request: None,
        deadline: Duration::from_secs(60),
    };
    Arc::new(Job::new(new, Time::from_millis(1_795_428_000_000)))
}

fn encoded(job: &Job) -> EncodedJob {
    EncodedJob::new(job, Schedule::default()).unwrap()
}

#[test]
fn least_recently_used_jobs_are_dropped() {
    let jobs: Vec<_> = std::iter::repeat_with(new_job).take(4).collect();
    let size = encoded(&jobs[0]).size();
    let held = |recent: &RecentJobs| -> Vec<bool> {
        let stored = jobs.iter().map(|job| recent.get(&job.id).is_some());
        stored.collect()
    };
    for recent in [
        RecentJobs::new(3, usize::MAX),
        RecentJobs::new(usize::MAX, 4 * size - 1),
    ] {
        for job in &jobs[..3] {
            let revision = recent.begin(job, &encoded(job));
            recent.confirm(job, revision);
        }
        recent.get(&jobs[0].id);
        let revision = recent.begin(&jobs[3], &encoded(&jobs[3]));
        recent.confirm(&jobs[3], revision);
        assert_eq!(held(&recent), [true, false, true, true]);
        assert!(recent.jobs().bytes <= 4 * size);
        for job in &jobs {
            recent.forget(&job.id);
        }
        assert_eq!(recent.jobs().bytes, 0);
    }
}

#[test]
fn task_is_found_from_its_commit_until_the_end_of_its_job() {
    let recent = RecentJobs::default();
    let mut job = Job::clone(&new_job());
    job.provider = Some("kling".to_owned());
    job.provider_task_id = Some("1".to_owned());
    let job = Arc::new(job);
    let revision = recent.begin(&job, &encoded(&job));
    assert_eq!(recent.find_task("kling", "1"), None, "not stored yet");
    recent.confirm(&job, revision);
    assert_eq!(recent.find_task("kling", "1"), Some(job.id.clone()));
    assert_eq!(recent.find_task("other", "1"), None);
    let mut last = Job::clone(&job);
    last.version += 1;
    last.status = Status::Succeeded;
    let revision = recent.begin(&Arc::new(last.clone()), &encoded(&last));
    recent.confirm(&last, revision);
    assert_eq!(recent.find_task("kling", "1"), None);
}

/// A step of a history of two nodes, given by their numbers.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A node derives the next version from what it has in memory, or else from a read.
    Send(usize),
    /// A node sends the final version.
    Finish(usize),
    /// A node changes the internal state, but not the version.
    ChangeInternalState(usize),
    /// The store executes the oldest commit that a node has sent.
    Execute(usize),
    /// A node receives the oldest reply, or loses it.
    Reply(usize),
    LoseReply(usize),
    /// A node receives the oldest message, or loses it.
    Receive(usize),
    LoseMessage(usize),
    /// A replica receives all writes.
    Replicate,
    /// The replica takes over.
    FailOver,
    /// The sweep deletes the job.
    Delete,
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..2usize;
    prop_oneof![
        8 => node().prop_map(Step::Send),
        8 => node().prop_map(Step::Execute),
        8 => node().prop_map(Step::Reply),
        4 => node().prop_map(Step::Receive),
        2 => node().prop_map(Step::LoseReply),
        2 => node().prop_map(Step::LoseMessage),
        2 => node().prop_map(Step::ChangeInternalState),
        2 => Just(Step::Replicate),
        2 => Just(Step::FailOver),
        1 => node().prop_map(Step::Finish),
        1 => Just(Step::Delete),
    ]
}

#[derive(Clone)]
struct Commit {
    job: Arc<Job>,
    revision: Revision,
    base: RecentJob,
}

enum Reply {
    Committed,
    Conflict(RecentJob),
    NotFound,
}

#[derive(Default)]
struct Node {
    recent: RecentJobs,
    sent: VecDeque<Commit>,
    replies: VecDeque<(Commit, Reply)>,
    messages: VecDeque<RecentJob>,
}

/// Two nodes and the hash of one job, with the rules of the scripts.
struct Model {
    nodes: [Node; 2],
    stored: Option<RecentJob>,
    replica: Option<RecentJob>,
    id: JobId,
    updates: u64,
}

/// Returns the numbers of the updates that a version contains.
fn updates_of(job: &Job) -> BTreeSet<String> {
    let public = job.metadata.keys().cloned();
    let internal = job.internal.handle.as_object().into_iter();
    let internal = internal.flat_map(|handle| handle.keys().cloned());
    public.chain(internal).collect()
}

impl Model {
    fn new() -> Self {
        let (job, nodes) = (new_job(), <[Node; 2]>::default());
        let revision = nodes[0].recent.begin(&job, &encoded(&job));
        nodes[0].recent.confirm(&job, revision);
        let id = job.id.clone();
        let stored = Some(RecentJob { job, revision });
        Self {
            nodes,
            replica: stored.clone(),
            stored,
            id,
            updates: 0,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send(node) => self.send(node, |job, update| {
                job.version += 1;
                job.metadata.insert(update, Value::Null);
            }),
            Step::Finish(node) => self.send(node, |job, update| {
                job.version += 1;
                job.status = Status::Succeeded;
                job.metadata.insert(update, Value::Null);
            }),
            Step::ChangeInternalState(node) => self.send(node, |job, update| {
                let mut handle = job.internal.handle.as_object().cloned().unwrap_or_default();
                handle.insert(update, Value::Null);
                job.internal = Arc::new(InternalState {
                    handle: handle.into(),
                    ..InternalState::default()
                });
            }),
            Step::Execute(node) => self.execute(node),
            Step::Reply(node) => self.reply(node),
            Step::LoseReply(node) => drop(self.nodes[node].replies.pop_front()),
            Step::Receive(node) => self.receive(node),
            Step::LoseMessage(node) => drop(self.nodes[node].messages.pop_front()),
            Step::Replicate => self.replica = self.stored.clone(),
            Step::FailOver => self.stored = self.replica.clone(),
            Step::Delete => (self.stored, self.replica) = (None, None),
        }
    }

    fn send(&mut self, node: usize, change: impl Fn(&mut Job, String)) {
        let node = &mut self.nodes[node];
        let base = node.recent.get(&self.id).or_else(|| self.stored.clone());
        let Some(base) = base.filter(|base| !base.job.is_final()) else {
            return;
        };
        self.updates += 1;
        let mut next = Job::clone(&base.job);
        change(&mut next, self.updates.to_string());
        let job = Arc::new(next);
        let revision = node.recent.begin(&job, &encoded(&job));
        node.sent.push_back(Commit {
            job,
            revision,
            base,
        });
    }

    fn execute(&mut self, number: usize) {
        let Some(commit) = self.nodes[number].sent.pop_front() else {
            return;
        };
        let reply = match &self.stored {
            None => Reply::NotFound,
            Some(stored) if stored.revision != commit.base.revision => {
                Reply::Conflict(stored.clone())
            }
            Some(stored) => {
                assert!(updates_of(&stored.job).is_subset(&updates_of(&commit.job)));
                assert!(stored.job.version <= commit.job.version);
                assert!(!stored.job.is_final());
                let written = RecentJob {
                    job: Arc::clone(&commit.job),
                    revision: commit.revision,
                };
                for node in &mut self.nodes {
                    node.messages.push_back(written.clone());
                }
                self.stored = Some(written);
                Reply::Committed
            }
        };
        self.nodes[number].replies.push_back((commit, reply));
    }

    fn reply(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let Some((commit, reply)) = node.replies.pop_front() else {
            return;
        };
        let tried = commit.base.revision;
        match reply {
            Reply::Committed => node.recent.confirm(&commit.job, commit.revision),
            Reply::NotFound => node.recent.forget(&self.id),
            Reply::Conflict(current) => {
                node.recent
                    .correct(&self.id, Some(tried), Some((current, 1)));
                let next = node.recent.get(&self.id);
                assert!(next.is_none_or(|next| next.revision != tried));
            }
        }
        let in_memory = node.recent.get(&self.id);
        assert!(in_memory.is_none_or(|recent| !recent.job.is_final()));
    }

    fn receive(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let Some(message) = node.messages.pop_front() else {
            return;
        };
        match node
            .recent
            .sent_by_this_node(self.id.as_str(), message.revision)
        {
            Some(job) => assert_eq!(job, message.job),
            None => node.recent.observe(&message.job, message.revision),
        }
    }

    /// Completes the pending commits of a node, then updates the job through it.
    fn update_in_the_end(&mut self, node: usize) {
        while !self.nodes[node].sent.is_empty() || !self.nodes[node].replies.is_empty() {
            self.execute(node);
            self.reply(node);
        }
        let update = (self.updates + 1).to_string();
        for _ in 0..2 {
            self.run(Step::Send(node));
            self.execute(node);
            self.reply(node);
        }
        if let Some(stored) = self.stored.as_ref().filter(|it| !it.job.is_final()) {
            let later = (self.updates).to_string();
            let updates = updates_of(&stored.job);
            assert!(updates.contains(&update) || updates.contains(&later));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// A commit on a version in memory never undoes an update that the store has.
    #[test]
    fn two_nodes_lose_no_update(steps in vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
        }
        model.update_in_the_end(0);
        model.update_in_the_end(1);
    }
}
