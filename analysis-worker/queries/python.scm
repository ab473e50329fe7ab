; A decorated definition begins at its decorators: of two definitions of one name the outer one counts.
(decorated_definition definition: (class_definition name: (identifier) @name)) @definition.class
(decorated_definition definition: (function_definition name: (identifier) @name)) @definition.function
(class_definition name: (identifier) @name) @definition.class
(function_definition name: (identifier) @name) @definition.function
(expression_statement (assignment left: (identifier) @name right: (lambda))) @definition.function
(expression_statement (assignment left: (identifier) @name)) @definition.variable
(type_alias_statement left: (type (identifier) @name)) @definition.type
(type_alias_statement left: (type (generic_type (identifier) @name))) @definition.type

(function_definition body: (block . (expression_statement . (string) @doc)))
(class_definition body: (block . (expression_statement . (string) @doc)))
(comment) @comment

(import_statement name: (dotted_name) @path) @import.module
(import_statement name: (aliased_import name: (dotted_name) @path)) @import.module
(import_from_statement module_name: (_) @path) @import.module
(import_from_statement module_name: (_) @path name: (dotted_name) @member) @import.module
(import_from_statement module_name: (_) @path name: (aliased_import name: (dotted_name) @member)) @import.module
(future_import_statement "__future__" @path) @import.module

(call function: (identifier) @name) @reference.call
(call function: (attribute attribute: (identifier) @name)) @reference.call
(decorator (identifier) @name) @reference.call
(decorator (attribute attribute: (identifier) @name)) @reference.call
(class_definition superclasses: (argument_list (identifier) @name @reference.type))
(class_definition superclasses: (argument_list (attribute attribute: (identifier) @name @reference.type)))
(type (identifier) @reference.type)
(type (attribute attribute: (identifier) @reference.type))
(generic_type (identifier) @reference.type)
