(create_table (object_reference name: (identifier) @name)) @definition.table
(create_view (object_reference name: (identifier) @name)) @definition.table
(create_materialized_view (object_reference name: (identifier) @name)) @definition.table
(create_function (object_reference name: (identifier) @name)) @definition.function
(create_trigger (keyword_trigger) . (object_reference name: (identifier) @name)) @definition.function
(create_type (object_reference name: (identifier) @name)) @definition.type
(create_schema (identifier) @name) @definition.module
(column_definition name: (identifier) @name) @definition.field

(invocation (object_reference name: (identifier) @name)) @reference.call
(relation (object_reference name: (identifier) @name)) @reference.type

(comment) @comment
(marginalia) @comment
