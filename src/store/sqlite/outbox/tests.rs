//! The queries of the outbox use its indexes.

use super::*;
use crate::store::sqlite::file;

/// Returns the steps of a statement's plan.
fn plan(db: &Connection, sql: &str) -> Vec<String> {
    let mut statement = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let values = vec![rusqlite::types::Null; statement.parameter_count()];
    statement
        .query_map(params_from_iter(values), |row| row.get(3))
        .unwrap()
        .collect::<rusqlite::Result<_>>()
        .unwrap()
}

fn database() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    file::migrate(&db, &file::MIGRATIONS).unwrap();
    db
}

#[test]
fn outbox_queries_use_their_indexes() {
    let db = database();
    let documents = "SEARCH delivery_documents USING INDEX \
        sqlite_autoindex_delivery_documents_1 (job_id=? AND version=?)";
    let due = "SEARCH deliveries USING INDEX deliveries_due (destination=? AND due_at<?)";
    assert_eq!(plan(&db, DUE), [due, documents]);
    for (sql, expected) in [
        (
            NEXT,
            "SEARCH deliveries USING COVERING INDEX deliveries_due (destination=? AND due_at>?)",
        ),
        (
            WAITING_COUNTS,
            "SCAN deliveries USING COVERING INDEX deliveries_due",
        ),
        (
            DELETE_SUPERSEDED,
            "SEARCH deliveries USING PRIMARY KEY (job_id=?)",
        ),
        (
            WAITING_SINCE,
            "SEARCH deliveries USING INDEX deliveries_waiting (created_at<?)",
        ),
    ] {
        assert_eq!(plan(&db, sql), [expected], "{sql}");
    }
    let unused = plan(&db, DELETE_UNUSED_DOCUMENTS);
    assert!(
        unused.iter().all(|step| !step.contains("SCAN")),
        "{unused:?}"
    );
}

#[test]
fn lists_use_the_index_of_their_most_selective_filter() {
    let db = database();
    let cursor = DeliveryCursor {
        created_at: Time::from_millis(0),
        id: DeliveryId {
            job: JobId::new(),
            version: 1,
            event: "job.failed".to_owned(),
            destination: "app".to_owned(),
        },
    };
    let states = [
        None,
        Some(DeliveryStateFilter::Waiting),
        Some(DeliveryStateFilter::Delivered),
        Some(DeliveryStateFilter::Failed),
    ];
    for (bits, state) in (0..16).flat_map(|bits| states.map(|state| (bits, state))) {
        let is_set = |bit: u32| bits & (1 << bit) != 0;
        let query = DeliveryQuery {
            job: is_set(0).then(JobId::new),
            owner: is_set(1).then(|| "ada".to_owned()),
            destination: is_set(2).then(|| "app".to_owned()),
            after: is_set(3).then(|| cursor.clone()),
            state,
            limit: 1,
        };
        let plan = plan(&db, &list_query(&query).0);
        let index = match (&query, state) {
            (DeliveryQuery { job: Some(_), .. }, _) => "PRIMARY KEY (job_id=?",
            (DeliveryQuery { owner: Some(_), .. }, _) => "INDEX deliveries_by_owner (owner=?",
            (_, Some(DeliveryStateFilter::Waiting)) => "INDEX deliveries_waiting",
            (_, Some(DeliveryStateFilter::Failed)) => "INDEX deliveries_failed",
            (
                DeliveryQuery {
                    destination: Some(_),
                    ..
                },
                _,
            ) => "INDEX deliveries_by_destination (destination=?",
            _ => "INDEX deliveries_by_created_at",
        };
        assert!(plan[0].contains(index), "{query:?}: {plan:?}");
        // Only the few deliveries of a single job are sorted.
        let is_sorted = plan.iter().any(|step| step.contains("ORDER BY"));
        assert_eq!(is_sorted, query.job.is_some(), "{query:?}: {plan:?}");
    }
}
