; The first pattern that fits decides what a class is.
(class_declaration "interface" name: (identifier) @name) @definition.interface
(class_declaration name: (identifier) @name (enum_class_body)) @definition.enum
(class_declaration name: (identifier) @name) @definition.class
(object_declaration name: (identifier) @name) @definition.class
(companion_object name: (identifier) @name) @definition.class
(function_declaration name: (identifier) @name) @definition.function
(secondary_constructor "constructor" @name) @definition.method
(property_declaration (modifiers (property_modifier)) (variable_declaration (identifier) @name)) @definition.constant
(property_declaration (variable_declaration (identifier) @name)) @definition.variable
(class_parameter ["val" "var"] (identifier) @name) @definition.field
(enum_entry (identifier) @name) @definition.variant
(type_alias type: (identifier) @name) @definition.type
(package_header (qualified_identifier) @name) @definition.module
(lambda_literal) @local
(anonymous_function) @local
(anonymous_initializer) @local
(getter) @local
(setter) @local

(import) @import.module

(call_expression . (identifier) @name) @reference.call
(call_expression . (navigation_expression (identifier) @name .)) @reference.call
(user_type (identifier) @reference.type)

(line_comment) @comment
(block_comment) @comment
