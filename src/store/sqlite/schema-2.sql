-- From 1 to 2: looks, hastened and remembered; patience; accounts.

ALTER TABLE jobs ADD COLUMN looked_at INTEGER;      -- the last claim to watch it
ALTER TABLE jobs ADD COLUMN hastened_at INTEGER;    -- a look to come, whatever is committed before
ALTER TABLE jobs ADD COLUMN watch_patient INTEGER NOT NULL DEFAULT 0;    -- 0 or 1

CREATE TABLE accounts (
    name    TEXT NOT NULL PRIMARY KEY,
    balance INTEGER NOT NULL,      -- millionths
    ends_at INTEGER NOT NULL       -- from then on as if there were none
) STRICT, WITHOUT ROWID;

CREATE INDEX accounts_by_end ON accounts (ends_at);
