//! The command `deliveries`: lists, shows and repeats deliveries.

use anyhow::anyhow;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use crate::hub_api::{self, HubApi, HubArgs};
use crate::print;
use crate::table::{cell, table};

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
pub(crate) struct DeliveriesArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List deliveries, newest first
    List(ListArgs),
    /// Show a delivery and its attempts
    Show(DeliveryArgs),
    /// Repeat a delivery now, once, with the same id
    Redeliver(DeliveryArgs),
}

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
struct ListArgs {
    #[command(flatten)]
    hub: HubArgs,
    /// Only deliveries of this job
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Only deliveries to this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Only deliveries in this state: waiting, held, delivered or failed
    #[arg(long)]
    state: Option<String>,
    /// Maximum number of deliveries
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Continue after an earlier list
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Args)]
#[command(after_help = hub_api::HELP)]
struct DeliveryArgs {
    #[command(flatten)]
    hub: HubArgs,
    /// Id of the delivery
    id: String,
}

pub(crate) async fn run(args: DeliveriesArgs) -> anyhow::Result<()> {
    match args.action {
        Action::List(args) => list(&args).await,
        Action::Show(args) => {
            let delivery = find(&args.hub.connect()?, &args.id).await?;
            print_delivery(&args.hub, &delivery)
        }
        Action::Redeliver(args) => {
            let path = ["deliveries", &args.id, "redeliver"];
            let delivery = args.hub.connect()?.send(Method::POST, &path, &[]).await?;
            print_delivery(&args.hub, &delivery)
        }
    }
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let limit = args.limit.to_string();
    let filters = [
        ("job", args.job.as_deref()),
        ("destination", args.destination.as_deref()),
        ("state", args.state.as_deref()),
        ("limit", Some(limit.as_str())),
        ("cursor", args.cursor.as_deref()),
    ];
    let query = filters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let query: Vec<(&str, &str)> = query.collect();
    let hub = args.hub.connect()?;
    let page = hub.send(Method::GET, &["deliveries"], &query).await?;
    if args.hub.json {
        return print(&format!("{page:#}"));
    }
    let heading = [
        "ID",
        "STATE",
        "ATTEMPTS",
        "CREATED",
        "NEXT ATTEMPT",
        "LAST ERROR",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(page["deliveries"].as_array().into_iter().flatten().map(row));
    print(&table(&rows))?;
    match page["next_cursor"].as_str() {
        Some(cursor) => print(&format!("\nmore: --cursor {cursor}")),
        None => Ok(()),
    }
}

fn row(delivery: &Value) -> Vec<String> {
    let last_attempt = delivery["attempts"].as_array().and_then(|all| all.last());
    let error = last_attempt.map_or(&Value::Null, |attempt| &attempt["error"]);
    let fields = [
        "id",
        "state",
        "attempt_count",
        "created_at",
        "next_attempt_at",
    ];
    let fields = fields.map(|field| &delivery[field]).into_iter();
    fields.chain([error]).map(cell).collect()
}

/// Returns a delivery, from the list of its job's deliveries.
async fn find(hub: &HubApi, id: &str) -> anyhow::Result<Value> {
    let not_found = || anyhow!("404: not_found: delivery not found");
    let job = id.split('.').next().unwrap_or_default();
    let mut cursor = None;
    loop {
        let mut query = vec![("job", job), ("limit", "200")];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let page = hub.send(Method::GET, &["deliveries"], &query).await?;
        let mut deliveries = page["deliveries"].as_array().into_iter().flatten();
        if let Some(delivery) = deliveries.find(|delivery| delivery["id"] == id) {
            return Ok(delivery.clone());
        }
        let next = page["next_cursor"].as_str().ok_or_else(not_found)?;
        cursor = Some(next.to_owned());
    }
}

fn print_delivery(hub: &HubArgs, delivery: &Value) -> anyhow::Result<()> {
    if hub.json {
        return print(&format!("{delivery:#}"));
    }
    let fields = [
        ("id", "id"),
        ("job", "job"),
        ("owner", "owner"),
        ("event", "event"),
        ("destination", "destination"),
        ("address", "address"),
        ("state", "state"),
        ("created", "created_at"),
        ("next attempt", "next_attempt_at"),
        ("ended", "ended_at"),
    ];
    let rows = fields.map(|(name, field)| vec![name.to_owned(), cell(&delivery[field])]);
    print(&table(&rows))?;
    let attempts = delivery["attempts"].as_array().into_iter().flatten();
    let heading = ["ATTEMPT AT", "MS", "STATUS", "ERROR"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(attempts.map(|attempt| {
        let fields = ["at", "duration_ms", "status", "error"];
        fields.map(|field| cell(&attempt[field])).to_vec()
    }));
    if rows.len() > 1 {
        print(&format!("\n{}", table(&rows)))?;
    }
    Ok(())
}
