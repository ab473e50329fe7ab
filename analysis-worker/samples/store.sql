-- Keeps items.
CREATE TABLE IF NOT EXISTS kept.items (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL
);

CREATE VIEW open_items AS SELECT id, upper(name) FROM items;

CREATE FUNCTION count_items() RETURNS int AS $$ SELECT 1 $$ LANGUAGE sql;

CREATE TYPE state AS ENUM ('open', 'closed');

SELECT count_items() FROM open_items;
