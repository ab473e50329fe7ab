; A section reaches to the next heading of its rank, so headings nest.
(section . (atx_heading heading_content: (inline) @name)) @definition.heading
(section . (setext_heading heading_content: (paragraph) @name)) @definition.heading
